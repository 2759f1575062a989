"""What went wrong in a benchmark, as text for a row, and whether anything can go on after it."""

from __future__ import annotations


def in_words(error: Exception, most: int = 300) -> str:
    """What went wrong; compilers say it on many lines."""
    return f"{type(error).__name__}: {str(error).strip()}"[:most]


def in_a_line(error: Exception) -> str:
    """The first line of it, short enough for a table."""
    return in_words(error).splitlines()[0][:160]


def is_fatal(error: Exception) -> bool:
    """The GPU is lost to this process, say after a kernel wrote where it must not."""
    lost = "CUDA error" in str(error) or "HIP error" in str(error)
    return lost and not is_crowded(error)


def is_crowded(error: Exception) -> bool:
    """There was no room in a GPU's memory, which others may have taken; torch says it so."""
    return "out of memory" in str(error)
