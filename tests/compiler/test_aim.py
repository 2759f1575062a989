"""Heads are compiled side by side, with the same result, and long work says that it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert import patterns
from sparsebert.compiler import aim as aim_module
from sparsebert.compiler.compile import Request, compile_schedule
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cover_search import Cover
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.support import progress
from sparsebert.support.progress import Progress

N = 1024
MASK = AttentionMask.stack_heads(
    [patterns.sliding_window(N, 5), patterns.star(N), patterns.random(N, 0.3), patterns.causal(N)]
)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test set torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compiled(threads: int) -> AttentionPlan:
    torch.set_num_threads(threads)
    # What compile_plan does once for a mask.
    return AttentionPlan(compile_schedule(Request(MASK, "cpu", "area", (64, 2, 4), "torch")))


def test_the_plan_does_not_depend_on_the_threads(threads: None) -> None:
    one, three = compiled(1), compiled(3)
    assert one is not three and one.report == three.report
    for tiles, same in (
        (one.tiles, three.tiles),
        (one.transposed, three.transposed),
        (one.shared_tiles.every, three.shared_tiles.every),
    ):
        assert len(tiles.arrays) == 12
        for array, again in zip(tiles.arrays, same.arrays, strict=True):
            assert np.array_equal(array, again)


def aim() -> aim_module.Aim:
    return aim_module.Aim("cpu", "area", (64, 1, 4), 4, "torch", "")


def test_large_heads_are_searched_side_by_side(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search waits until another runs; they end in another order than they began."""
    torch.set_num_threads(2)
    meet, first = threading.Barrier(2, timeout=20), threading.Event()

    def search(packed: np.ndarray, *_: object) -> Cover:
        meet.wait()
        number = int(packed[0, 0])
        if number == 0:
            assert first.wait(20)
        elif number == 1:
            first.set()
        return Cover(str(number), (), 0.0)

    monkeypatch.setattr(aim_module, "best_cover", search)
    heads = [np.full((N, N // 8), number, dtype=np.uint8) for number in range(4)]
    assert [cover.name for cover in aim().search(heads, N, N)] == ["0", "1", "2", "3"]


def test_small_heads_and_one_thread_start_no_threads(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def search(packed: np.ndarray, *_: object) -> Cover:
        seen.add(threading.current_thread())
        return Cover("", (), 0.0)

    monkeypatch.setattr(aim_module, "best_cover", search)
    for count, n in ((2, 128), (1, N)):
        torch.set_num_threads(count)
        aim().search([np.zeros((n, n // 8), dtype=np.uint8)] * 4, n, n)
    assert seen == {threading.main_thread()}


def test_errors_of_a_search_come_out(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: object) -> Cover:
        raise MemoryError("too large")

    torch.set_num_threads(2)
    monkeypatch.setattr(aim_module, "best_cover", search)
    with pytest.raises(MemoryError, match="too large"):
        aim().search([np.zeros((N, N // 8), dtype=np.uint8)] * 4, N, N)


@pytest.mark.parametrize(
    ("target", "backend", "other"),
    [("cpu", "torch", ("cpu", "native")), ("cpu", "native", ("cpu", "torch")),
     ("sm90", "triton", ("cpu", "native")), ("sm120", "triton", ("cpu", "native"))],
)  # fmt: skip
def test_an_aim_at_tiles_of_the_other_kind(
    target: str, backend: str, other: tuple[str, str]
) -> None:
    """Of the same target, or where it has none of that kind, of the CPU."""
    aim = aim_module.Aim(target, "time", (48, 1, 6), 3, backend, isa_for(target, backend))
    assert aim.towards(singles=aim.singles) is aim
    changed = aim.towards(singles=not aim.singles)
    assert (changed.target, changed.backend) == other
    assert changed.singles == (not aim.singles) == bool(changed.isa)
    assert (changed.calls, changed.objective, changed.tile_sets) == ((48, 1, 6), "time", 3)
    assert changed.model.head_dim == 48


# ------------------------------------------------------------------------ progress


def test_short_compiles_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(1)
    assert capsys.readouterr() == ("", "")


def test_long_compiles_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a clock on which each look takes two seconds; not on a terminal, so in lines."""
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    compiled(1)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"compiling a mask: 4 head(s) of {N} x {N}"
    assert lines[-1].startswith("compiling a mask: done, ")
    between = lines[1:-1]
    assert between and all(line.startswith("compiling a mask: ") for line in between)
    assert any(" of 4, about " in line for line in between)
    assert len(between) <= next(clock) / progress._EVERY


def test_a_mask_of_one_head_says_so_before_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    sb.compile_plan(patterns.strided(300, 17), target="cpu", objective="area")
    assert capsys.readouterr().err.startswith("compiling a mask: 1 head(s) of 300 x 300\n")


def test_progress_waits_for_its_delay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("work", 3, "parts", delay=5.0) as bar:
        now = 4.9
        bar.update()
        assert capsys.readouterr().err == ""
        now = 5.0
        bar.update(0)
        assert capsys.readouterr().err == "work: 3 parts\n"
        now = 30.0
        bar.update()
        assert capsys.readouterr().err == "work: 2 of 3, about 15 seconds left\n"
        bar.update()
    assert capsys.readouterr().err == "work: done, 30 seconds\n"


def test_without_standard_error_there_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program without a console."""
    monkeypatch.setattr("sys.stderr", None)
    with Progress("work", 2) as bar:
        bar.update(2)
