"""What went wrong in a benchmark, as text for a row, and whether anything can go on after it."""

from __future__ import annotations


def in_words(error: Exception, most: int = 300) -> str:
    """What went wrong; compilers say it on many lines."""
    return f"{type(error).__name__}: {str(error).strip()}"[:most]


def in_a_line(error: Exception) -> str:
    """The first line of it, short enough for a table."""
    return in_words(error).splitlines()[0][:160]


_LOST = ("CUDA error", "HIP error", "Triton Error [CUDA]", "Triton Error [HIP]")
"""What torch and Triton's launchers begin with when a driver's call failed. Which of them says it
depends on who asks the driver next."""
_CROWDED = ("out of memory", "busy or unavailable")


def is_fatal(error: Exception) -> bool:
    """The GPU is lost to this process, say after a kernel wrote where it must not."""
    return any(mark in str(error) for mark in _LOST) and not is_crowded(error)


def is_crowded(error: Exception | str) -> bool:
    """There was no room on a GPU, which others may have taken: in its memory, or at all."""
    return any(mark in str(error) for mark in _CROWDED)
