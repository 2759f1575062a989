"""A disk that is full: what a run has kept, and how it goes on."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from sparsebert.learn.run_folder import RESULT
from sparsebert.learn.training import last_checkpoint

_FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors and torch.save name no errno; the latter says no more than that writing failed.
_WORDS = ("No space left on device", "Disk quota exceeded", "inline_container", "PytorchStreamW")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say of a write that failed for want of space what the run in `folder` has kept.

    Raises:
        OSError: in place of the error that means a full disk; others pass as they are.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise OSError(
            f"learn: no space left to write to {folder} ({_first_line(error)}). {_kept(folder)} "
            "Make some space and give the same command again: it goes on from there"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk, or a user's share of it, is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error) for words in _WORDS)


def _kept(folder: Path) -> str:
    """What is there of the run."""
    words = []
    phases = sorted(path for path in (folder / "work").glob("*") if path.is_dir())
    done = [phase.name for phase in phases if (phase / RESULT).exists()]
    if done:
        words.append(f"finished and kept: {', '.join(done)}")
    for phase in phases:
        checkpoint = last_checkpoint(phase)
        if phase.name not in done and checkpoint is not None:
            step = Path(checkpoint).name.rpartition("-")[2]
            words.append(f"{phase.name} is kept up to its step {step}")
    return "; ".join(words or ["nothing was finished yet"]).capitalize() + "."


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
