"""Timing on a GPU, without one: its clock is moved by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from benchmarks.harness import gpu_timing


class FakeEvent:
    """A clock that a call moves by hand."""

    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    """Runs what was "captured": the calls themselves."""

    def __init__(self) -> None:
        self.ms = 0.0

    def replay(self) -> None:
        FakeEvent.now += self.ms

    def reset(self) -> None:
        pass


@contextlib.contextmanager
def fake_capture(graph: FakeGraph) -> Iterator[None]:
    start = FakeEvent.now
    yield
    graph.ms = FakeEvent.now - start


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    fakes = {
        "Event": FakeEvent, "CUDAGraph": FakeGraph, "graph": fake_capture, "Stream": Stream,
        "current_stream": Stream, "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_gpu_times_are_those_of_single_calls_in_turns(fake_gpu: None) -> None:
    entered = []

    def takes(ms: float) -> tuple[gpu_timing.Call, gpu_timing.Around]:
        def call() -> None:
            FakeEvent.now += ms

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            entered.append(ms)
            yield

        return call, around

    calls = {"a": takes(2.0), "b": takes(3.0)}
    times = gpu_timing.by_events(calls, seconds=0.0, least=3)
    assert times == {"a": [2.0] * 30, "b": [3.0] * 30}
    assert entered == [2.0, 3.0] * 4  # once to warm up, and in turns
    assert gpu_timing.by_graph(*calls["b"], 5) == pytest.approx(3.0)
