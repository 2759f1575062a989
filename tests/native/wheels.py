"""Build wheels that need no compiler, and prove them: `make wheels`.

Each must be what its name says by auditwheel's word (glibc 2.28, any Python 3, any torch). The one
for this processor is installed in a fresh environment without a compiler, and runs there.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT
from tests.native.environments import Environment, checkout

GLIBC = (2, 28)
CROSS_COMPILERS = {"aarch64": "aarch64-linux-gnu-g++", "x86_64": "x86_64-linux-gnu-g++"}
CALL = """
import torch, sparsebert as sb
from sparsebert.kernels.cpu import library
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 2, 130, 20)
mask = sb.patterns.longformer(130, window=8, num_global=2)
worst = (sb.sparse_attention(q, k, v, mask) - sb.reference_attention(q, k, v, mask)).abs().max()
assert worst < 1e-5, worst
assert library.load().library is not None, library.load().reason
print("runs with", library.load().isa)
"""


def build_wheel(source: Path, out: Path, machine: str, cxx: str | None) -> Path:
    """The wheel for a kind of processor, built in a copy of the checkout."""
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", f"--plat-name={tag}"]
    chosen = {"SPARSEBERT_NATIVE": "1", **({"CXX": cxx} if cxx else {})}
    done = subprocess.run(
        command, cwd=source, env={**os.environ, **chosen}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"no wheel for {machine}:\n{done.stdout}")
    (built,) = (source / "dist").glob(f"*-py3-none-{tag}.whl")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(built, out))


def audit(wheel: Path) -> None:
    """End with an error if it needs a younger glibc than its name says, or other libraries."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'platform\s+tag:\s+"manylinux_(\d+)_(\d+)_', said)
    if found is None or (int(found[1]), int(found[2])) > GLIBC:
        sys.exit(f"{wheel.name} is not what its name says:\n{said}")
    print(f"{wheel.name}: needs glibc {found[1]}.{found[2]}, by auditwheel", flush=True)


def prove(wheel: Path) -> None:
    """Install it where nothing can be compiled, and run it."""
    with tempfile.TemporaryDirectory(prefix="sparsebert-wheel-") as name:
        environment = Environment(Path(name) / "venv")
        done = environment.install(str(wheel), PATH="")
        if done.returncode == 0:
            done = environment.run("python", "-c", CALL, PATH="")
    if done.returncode:
        sys.exit(f"{wheel.name} does not work in a fresh environment:\n{done.stdout}")
    print(f"{wheel.name}: installed in a fresh environment, {done.stdout.strip()}", flush=True)


def main() -> None:
    """Build, audit and prove; ends with an error if one of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels")
    out = parser.parse_args().out
    here = platform.machine()
    with tempfile.TemporaryDirectory(prefix="sparsebert-wheels-") as name:
        source = checkout(Path(name) / "source", toy=False)
        wheel = build_wheel(source, out, here, None)
        audit(wheel)
        prove(wheel)
        for machine, cxx in CROSS_COMPILERS.items():
            if machine == here:
                continue
            if shutil.which(cxx) is None:
                package = cxx.replace("-g++", "").replace("_", "-")
                print(f"left out: {machine}, which needs {cxx} (apt install g++-{package})")
                continue
            audit(build_wheel(source, out, machine, cxx))
            print(f"    for {machine}: compiled here, not run")


if __name__ == "__main__":
    main()
