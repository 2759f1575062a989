"""Progress of long work: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

_EVERY = 20.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """`total` steps of something, shown on standard error.

    A terminal gets a bar. A file, a notebook's log or a CI job gets a line when it begins, one
    every twenty seconds and one when it is done, so that nobody has to guess whether it hangs.

    With a `delay` in seconds, work that is done earlier shows nothing.
    """

    def __init__(
        self, title: str, total: int, unit: str = "", done: int = 0, delay: float = 0.0
    ) -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._note = ""
        self._started = self._last = time.monotonic()
        self._first = done
        self._delay = delay
        self._is_shown = False
        self._bar: Any = None
        if delay == 0.0:
            self._show()

    def _show(self) -> None:
        self._is_shown = True
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm  # here, so that compiling a mask needs torch and numpy alone

            self._bar = tqdm(
                desc=self.title, total=self.total, initial=self.done, unit=self.unit or "it",
                leave=False, dynamic_ncols=True,
            )  # fmt: skip
        else:
            what, first = f"{self.total} {self.unit}".strip(), self._first
            self._say(what + (f", {first} of them done before" if first else ""))

    def update(self, steps: int = 1) -> None:
        """So many more steps are done; with 0, the work goes on."""
        self.done += steps
        if not self._is_shown:
            if time.monotonic() - self._started >= self._delay and self.done < self.total:
                self._show()
            return
        if self._bar is not None:
            self._bar.update(steps)
            return
        now = time.monotonic()
        if now - self._last >= _EVERY and self.done < self.total:
            self._last = now
            made = self.done - self._first
            left = (self.total - self.done) * (now - self._started) / made if made else None
            about = "" if left is None else f", about {_duration(left)} left"
            self._say(f"{self.done} of {self.total}{self._note}{about}")

    def note(self, words: str) -> None:
        """Words to be shown beside the count."""
        self._note = f", {words}"
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)

    def close(self) -> None:
        """No more steps to come; says how long it took."""
        if not self._is_shown:
            return
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._started
        short = f"stopped at {self.done} of {self.total}" if self.done < self.total else "done"
        self._say(f"{short}, {_duration(seconds)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _say(self, words: str) -> None:
        if sys.stderr is not None:  # as in a program without a console
            print(f"{self.title}: {words}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
