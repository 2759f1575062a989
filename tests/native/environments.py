"""Fresh environments that see this one's packages, but for sparsebert: for what gets installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.native import toys


class Environment:
    """A new virtual environment in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (self.packages,) = folder.glob("lib/python*/site-packages")
        links = folder / "packages"
        links.mkdir()
        for path in map(Path, sys.path):
            if not any(path.glob("*.dist-info")):  # no packages there
                continue
            for entry in path.iterdir():
                ours = entry.name.startswith(("sparsebert", "__editable__", "pip"))
                if not ours and entry.suffix != ".pth" and not (links / entry.name).exists():
                    (links / entry.name).symlink_to(entry)
        # After those of the environment: setuptools of this one is the one that builds.
        (self.packages / "shared.pth").write_text(f"{links}\n", encoding="utf-8")
        for old in self.packages.glob("setuptools*"):
            shutil.rmtree(old)

    @property
    def kernels(self) -> Path:
        """Where the library is after an installation."""
        return self.packages / "sparsebert" / "kernels" / "cpu"

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in its folder, with other variables beside."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPARSEB"))}
        program = self.folder / "bin" / command[0]
        return subprocess.run(
            [str(program), *command[1:]], cwd=self.folder, env={**plain, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def install(self, *what: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """pip install, from what is here alone."""
        options = ("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall")
        pip = ("python", "-m", "pip", "--disable-pip-version-check")
        return self.run(*pip, "install", *options, *what, **environment)


def checkout(folder: Path, *, toy: bool) -> Path:
    """A copy of what gets installed of this checkout; with `toy` its kernels compile at once."""
    folder.mkdir()
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", ".*")
    for name in ("sparsebert", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    if toy:
        for path in [*(folder / "kernels" / "cpu").glob("*.cpp")]:
            path.unlink()
        toys.sources(folder / "kernels" / "cpu")
    return folder
