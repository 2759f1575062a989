"""Which commit a checkout is, where it was copied without git.

`write` notes, in a folder that travels with the files, the commit and a hash of every tracked
file; `read` says on the other side whether they are still those.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess

NAME = "stamp.json"


def write(folder: pathlib.Path, root: pathlib.Path, results: str) -> str:
    """Stamp a clean checkout; one that is not clean, or has no git, gets no stamp.

    Args:
        folder: where the stamp goes.
        root: of the checkout.
        results: a folder in it whose changes do not matter, "benchmarks/results".

    Returns what was done, in words.
    """
    path = folder / NAME
    path.unlink(missing_ok=True)
    commit = _git(root, "rev-parse", "--short", "HEAD").strip()
    if not commit:
        return "no stamp: there is no git"
    sources = ["--", ".", f":!{results}"]
    if _git(root, "status", "--porcelain", "--untracked-files=no", *sources):
        return "no stamp: the tree is dirty"
    names = [name for name in _git(root, "ls-files", "-z", *sources).split("\0") if name]
    files = {name: _hash(root / name) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"commit": commit, "files": files}), encoding="utf-8")
    return f"stamped: commit {commit}, {len(files)} files"


def read(folder: pathlib.Path, root: pathlib.Path) -> dict[str, str]:
    """ "commit" and "tree" of a stamped checkout; nothing where there is no stamp.

    The tree is "clean" if every file is the one of the commit, else "dirty".
    """
    try:
        stamp = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    same = all(_hash(root / name) == value for name, value in stamp["files"].items())
    return {"commit": stamp["commit"], "tree": "clean" if same else "dirty"}


def _hash(path: pathlib.Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _git(root: pathlib.Path, *arguments: str) -> str:
    """What git prints; "" where it cannot say."""
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout
