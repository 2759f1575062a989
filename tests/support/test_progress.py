"""Progress: lines for a file, a bar for a terminal."""

from __future__ import annotations

import pytest

from sparsebert.support import progress

Output = pytest.CaptureFixture[str]


def test_progress_is_said_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress("1/2 search", 10, "steps", done=2) as shown:
        for _ in range(7):
            now[0] += 8.0
            shown.note("loss 1.250")
            shown.update()
    assert capsys.readouterr().err.splitlines() == [
        "1/2 search: 10 steps, 2 of them done before",
        "1/2 search: 5 of 10, loss 1.250, about 40 seconds left",
        "1/2 search: 8 of 10, loss 1.250, about 16 seconds left",
        "1/2 search: stopped at 9 of 10, 56 seconds",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.Progress("1/2 search", 2, "steps") as shown:
        shown.update(2)
    written = capsys.readouterr().err
    assert "\r" in written and written.endswith("1/2 search: done, 0 seconds\n")
