"""Names of machines, and the one at hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from sparsebert import patterns
from sparsebert.compiler.cost.targets import is_target, machine_target
from sparsebert.kernels.architecture import architecture
from sparsebert.plan import compile_plan


def test_names_of_targets() -> None:
    assert all(map(is_target, ("cpu", "sm80", "sm90", "sm120", "gfx942", "gfx90a", "gfx1100")))
    assert not any(map(is_target, ("cpu2", "sm9", "sm9000", "gfx", "gfx94g", "cuda", None, 90)))


@pytest.fixture
def forgotten_architectures() -> Iterator[None]:
    """Devices that a test makes up are not remembered."""
    architecture.cache_clear()
    yield
    architecture.cache_clear()


@pytest.mark.usefixtures("forgotten_architectures")
def test_the_machine_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_target() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    card = SimpleNamespace(major=8, minor=6, gcnArchName="gfx90a:sramecc+:xnack-")
    cards = {torch.device("cuda", 3): card}
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(torch.version, "hip", None)
    assert machine_target() == "sm86"
    architecture.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert machine_target() == "gfx90a"


@pytest.mark.parametrize("target", ["banana", "sm", "h100", "CPU", 90])
def test_refuses_targets_that_are_no_machines(target):
    with pytest.raises(
        ValueError, match=r"target must be 'cpu', 'sm90', 'gfx942'.*got .*leave it"
    ):
        compile_plan(patterns.star(32), target=target)
