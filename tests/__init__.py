"""The tests, in the package's folders."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
