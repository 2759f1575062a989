"""What is remembered: bounded in bytes, the least recently used goes first, none in use goes."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert import memory, patterns, plan_cache
from sparsebert.backends import registry
from sparsebert.mask_plans import MaskPlans
from sparsebert.memory import Shelf, remembered_bytes, set_cache_bytes
from sparsebert.plan import AttentionPlan
from sparsebert.support.forks import ForkSafeLock
from tests.attention.cases import needs_library
from tests.backends.cases import ROUTES
from tests.compiler.plans import tiles_plan

CPU = torch.device("cpu")
MIB = 1 << 20


def ready(plans: MaskPlans, length: int) -> AttentionPlan:
    """The plan for a length, with what a call with "auto" runs."""
    plan = plans.get(length, length, CPU)
    plan.program_for(*ROUTES["auto"])
    return plan


def remembered_lengths(plans: MaskPlans) -> list[int]:
    """Of the plans of one mask, those made last at the end."""
    keys: list[Any] = list(plan_cache.plans.items)
    return [key.q_len for key in keys if key.request[0] == plans.fingerprint]


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """Bounds the memory to so much beyond what must stay of other tests."""
    sb.compile_plan(patterns.star(16), target="cpu")  # the newest stays: a small one
    set_cache_bytes(0)
    stays = remembered_bytes()
    yield lambda size: set_cache_bytes(stays + size)
    set_cache_bytes(None)


class Holder:
    """A value of several arrays and tensors."""

    def __init__(self, *held: memory.Buffer) -> None:
        self.held = held


def a_shelf() -> Shelf[np.ndarray]:
    return Shelf(lambda array: [array])


def block(size: int) -> np.ndarray:
    return np.zeros(size, dtype=np.uint8)


def test_the_least_recently_used_goes_first_on_whichever_shelf(room: Callable) -> None:
    room(4 * MIB)
    one, two = a_shelf(), a_shelf()
    for key in "abc":
        one.put(key, block(MIB))
    two.put("x", block(MIB))
    assert list(one.items) == ["a", "b", "c"]
    assert one.get("a") is not None and one.get("c") is not None  # so b is the oldest, then x
    two.put("y", block(MIB))
    assert list(one.items) == ["a", "c"] and list(two.items) == ["x", "y"]
    two.put("z", block(2 * MIB))
    assert list(one.items) == ["c"] and list(two.items) == ["y", "z"]
    room(0)
    assert list(one.items) == ["c"] and list(two.items) == ["z"]  # the newest of each
    assert one.get("b") is None and two.get("y") is None


def test_a_value_beyond_the_bound_is_kept_while_it_is_used(room: Callable) -> None:
    room(MIB)
    shelf = a_shelf()
    large = block(3 * MIB)
    shelf.put("large", large)
    assert shelf.get("large") is large
    shelf.put("next", block(10))
    assert list(shelf.items) == ["next"]


def test_what_somebody_holds_stays(room: Callable) -> None:
    room(0)
    shelf, one, two = a_shelf(), Holder(), Holder()
    for key in "abc":
        shelf.put(key, block(MIB))
        shelf.hold(key, one)
    shelf.hold("a", two)
    shelf.put("d", block(MIB))
    assert list(shelf.items) == ["a", "b", "c", "d"]
    shelf.hold("d", one, instead_of="d")
    shelf.hold("d", one, instead_of="b")
    shelf.hold("d", one, instead_of="a")  # which the other one holds
    assert list(shelf.items) == ["a", "c", "d"]
    del one
    gc.collect()
    shelf.put("e", block(MIB))
    assert list(shelf.items) == ["a", "e"]
    room(3 * MIB)
    for key in "fg":
        shelf.put(key, block(MIB))
        shelf.hold("f", two, instead_of="a")  # "a" has been in use until now
    assert list(shelf.items) == ["a", "f", "g"]


def test_what_is_held_elsewhere_is_found_again(room: Callable) -> None:
    room(MIB)
    shelf = a_shelf()
    held = block(MIB)
    shelf.put("held", held)
    shelf.put("other", block(MIB))
    assert "held" not in shelf.items
    assert shelf.get("held") is held
    gone = weakref.ref(held)
    shelf.put("other", block(MIB))
    del held
    gc.collect()
    assert gone() is None and shelf.get("held") is None


def test_shared_memory_counts_once(room: Callable) -> None:
    room(100 * MIB)
    before = remembered_bytes()
    both, shelf = block(MIB), Shelf[Holder](lambda value: value.held)
    tensor = torch.from_numpy(both)
    shelf.put("a", Holder(both, tensor, tensor[3:]))
    shelf.put("b", Holder(both, torch.empty(5 * MIB, device="meta")))
    assert remembered_bytes() - before == MIB
    del shelf
    assert remembered_bytes() == before


def test_a_value_in_the_place_of_another_is_counted_instead_of_it(room: Callable) -> None:
    room(100 * MIB)
    before, shelf = remembered_bytes(), a_shelf()
    same = block(2 * MIB)
    for value in (block(MIB), same, same, block(MIB)):
        shelf.put("key", value)
    assert remembered_bytes() - before == MIB
    shelf.put("key", same)
    memory.has_grown(same)
    assert remembered_bytes() - before == 2 * MIB
    del shelf
    assert remembered_bytes() == before


def test_what_a_dead_owner_remembered_is_freed(room: Callable) -> None:
    room(100 * MIB)
    before = remembered_bytes()
    shelf = a_shelf()
    shelf.put("a", block(MIB))
    alive = weakref.ref(shelf.items["a"])
    del shelf
    assert alive() is None and remembered_bytes() == before


def test_memory_used_again_after_a_dead_owner_is_counted_as_what_it_is_now(room: Callable) -> None:
    room(100 * MIB)
    before, place = remembered_bytes(), block(4 * MIB)
    shelf = a_shelf()
    shelf.put("a", place[:MIB])
    del shelf
    shelf = a_shelf()
    shelf.put("a", place)  # begins where the other did
    assert remembered_bytes() - before == 4 * MIB


def test_what_was_forgotten_long_ago_is_not_known_for_ever(room: Callable) -> None:
    room(0)
    shelf = a_shelf()
    for key in range(10_000):
        shelf.put(key, block(1))
    assert len(shelf._forgotten) < 5_000


def test_growth_is_counted(room: Callable) -> None:
    """A plan gets its dense mask when it is first run, not when it is compiled."""
    room(100 * MIB)
    mask = patterns.random(1024, 0.5, seed=5, num_heads=4)
    plan = tiles_plan(mask)
    assert plan.dense_heads.all()
    before = remembered_bytes()
    plan.program_for(*ROUTES["auto"])
    assert 4 * MIB <= remembered_bytes() - before < 4.2 * MIB  # a byte a position, and little more
    room(MIB)
    plan.program_for(*ROUTES["torch"])  # beyond the bound: others go, itself too, but it works
    assert plan.program_for(*ROUTES["torch"]) is plan.program_for(*ROUTES["torch"])


def test_what_was_compiled_is_counted(room: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits, tiles, and the tiles of the transposed mask, of a crop those of the whole plan too."""
    monkeypatch.setitem(registry.planned, "cpu", "torch")
    room(100 * MIB)
    before = remembered_bytes()
    plans = MaskPlans(patterns.strided(300, 17))
    crop = ready(plans, 200)
    assert crop.shared_tiles.transposed.num_rows == 200
    memory.has_grown(crop)
    tiles = [crop.tiles, crop.shared_tiles.transposed, crop.shared_tiles.whole.transposed]
    assert all(len(each.arrays) == 12 for each in tiles)
    arrays = [crop.mask.bits, plans.mask.bits, *(a for each in tiles for a in each.arrays)]
    wanted = sum(array.nbytes for array in arrays)
    programs = sum(x.numel() * x.element_size() for x in crop.program_for(*ROUTES["auto"]).tensors)
    whole = sum(array.nbytes for array in plans._compiled.popitem()[1][1].tiles.arrays)
    assert wanted <= remembered_bytes() - before <= wanted + programs + whole + 10_000


@pytest.mark.parametrize(
    ("planned_for", "bound"),
    [
        ("torch", 5 * MIB // 4),  # for which it runs dense: with a mask of 256 KiB
        # Beside tiles, whose words the image has once more.
        pytest.param("native", 5 * MIB // 2, marks=needs_library),
    ],
)
@pytest.mark.parametrize("which", ["compile_plan", "sparse_attention", "MaskPlans"])
def test_plans_are_bounded_by_bytes_not_by_count(
    room: Callable, which: str, planned_for: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is for some four plans."""
    monkeypatch.setitem(registry.planned, "cpu", planned_for)
    n = 512

    def make(seed: int) -> None:
        mask = patterns.random(n, 0.5, seed=100 + seed)
        if which == "compile_plan":
            sb.compile_plan(mask, target="cpu").program_for(*ROUTES["auto"])
        else:
            q = torch.zeros(1, 1, n, 8)
            sb.sparse_attention(q, q, q, mask)

    room(bound)
    before = remembered_bytes()
    plans = MaskPlans(patterns.random(n, 0.5, seed=99))
    for step in range(10):
        if which == "MaskPlans":
            ready(plans, n - step)
        else:
            make(step)
        assert remembered_bytes() - before <= bound
    if which == "MaskPlans":
        lengths = remembered_lengths(plans)
        assert 2 <= len(lengths) <= 5
        assert lengths[-1] == n - 9
        assert [use[0] for use in plans.in_use] == [n - 9]
        first = plan_cache.plans.items.copy()
        ready(plans, n - 9)
        assert plan_cache.plans.items == first


def test_compile_plan_finds_a_plan_that_is_in_use_whatever_the_bound(room: Callable) -> None:
    set_cache_bytes(0)
    mask = patterns.star(96)
    plan = sb.compile_plan(mask, target="cpu")
    for seed in range(3):
        sb.compile_plan(patterns.random(96, 0.3, seed=seed), target="cpu")
    assert sb.compile_plan(mask, target="cpu") is plan


def test_small_plans_are_all_remembered(room: Callable) -> None:
    """More than any count: hundreds of lengths of a short mask take little."""
    room(64 * MIB)
    plans = MaskPlans(patterns.sliding_window(128, 4))
    made = [ready(plans, length) for length in range(1, 101)]
    for length, plan in enumerate(made, start=1):
        assert ready(plans, length) is plan


@pytest.mark.parametrize("planned_for", ["torch", pytest.param("native", marks=needs_library)])
def test_a_model_compiles_once_however_little_room_there_is(
    room: Callable, monkeypatch: pytest.MonkeyPatch, planned_for: str
) -> None:
    from sparsebert.compiler import aim

    searches = []

    def counting(search: Callable) -> Callable:
        return lambda *args: searches.append(args[1]) or search(*args)

    for name in ("best_cover", "best_groups"):
        monkeypatch.setattr(aim, name, counting(getattr(aim, name)))
    monkeypatch.setitem(registry.planned, "cpu", planned_for)
    set_cache_bytes(0)
    layers = [MaskPlans(patterns.random(200, 0.3, seed=60 + layer)) for layer in range(3)]
    for _ in range(2):
        for length in (200, 150, 100):
            for plans in layers:
                assert ready(plans, length).q_len == length
    assert len(searches) == 3
    assert all(len(plans.in_use) == 1 for plans in layers)
    assert [remembered_lengths(plans) for plans in layers] == [[100]] * 3


def test_a_model_does_not_keep_what_ran_at_full_length(
    room: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the tiles, which a search found, but not the dense masks made of them."""
    monkeypatch.setitem(registry.planned, "cpu", "torch")  # for which it runs dense
    set_cache_bytes(0)
    plans = MaskPlans(patterns.random(200, 0.5, seed=41))
    (ran,) = (
        weakref.ref(x)
        for x in ready(plans, 200).program_for(*ROUTES["auto"]).tensors
        if x.numel() == 200 * 200
    )
    assert ran() is not None
    ready(plans, 100)
    gc.collect()
    assert ran() is None and [key[0] for key in plans.in_use] == [100]
    assert remembered_lengths(plans) == [100]


def test_arrays_of_functions_are_remembered_by_their_arguments(room: Callable) -> None:
    room(3 * MIB)
    made = []

    @memory.remember
    def zeros(size: int, kind: str) -> np.ndarray:
        made.append(size)
        return block(size)

    first = zeros(2 * MIB, "a")
    assert zeros(2 * MIB, "a") is first and made == [2 * MIB]
    assert zeros(MIB, kind="k") is zeros(MIB, kind="k") and made == [2 * MIB, MIB]
    assert zeros(size=1, kind="k") is zeros(kind="k", size=1)
    made.clear()
    del first
    zeros(2 * MIB, "b")  # the first one has to go
    zeros(2 * MIB, "a")
    assert made == [2 * MIB] * 2


def test_plans_of_compiled_graphs_are_not_forgotten(room: Callable) -> None:
    set_cache_bytes(0)
    plans = MaskPlans(patterns.random(64, 0.5, seed=3))
    kept = ready(plans, 40)
    plans.keep(next(iter(plans.in_use)))
    for length in (41, 42, 43):
        ready(plans, length)
    assert [key[0] for key in plans.in_use] == remembered_lengths(plans) == [40, 43]
    assert next(iter(plans.in_use.values())) is kept


def test_a_compiled_model_is_not_compiled_again_because_others_need_room(room: Callable) -> None:
    set_cache_bytes(0)
    module = sb.SparseSelfAttention(16, 2, patterns.random(64, 0.5, seed=4)).eval()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=count, fullgraph=True)
    x = torch.randn(1, 40, 16)
    with torch.no_grad():
        expected = compiled(x)
        made = len(graphs)
        for length in range(41, 50):
            module(torch.randn(1, length, 16))
        gc.collect()
        assert compiled(x).equal(expected)
    assert len(graphs) == made == 1


def test_making_plans_again_and_again_is_said_once(room: Callable) -> None:
    """What does not fit is made anew at each use, and somebody should raise the bound."""
    set_cache_bytes(0)
    shelf = a_shelf()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(50):
            shelf.put(step % 2, block(MIB))
            assert len(said) == (step >= 2 + 19)
    assert "SPARSEBERT_CACHE_BYTES" in str(said[0].message)
    set_cache_bytes(10 * MIB)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in range(9):
            shelf.put(key, block(1))


def test_the_bound_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEBERT_CACHE_BYTES", "12345")
    assert memory.cache_bytes() == 12345
    monkeypatch.delenv("SPARSEBERT_CACHE_BYTES")
    assert memory.cache_bytes() == memory.DEFAULT_BYTES
    for wrong in ("1G", "-1", "", "1e9"):
        monkeypatch.setenv("SPARSEBERT_CACHE_BYTES", wrong)
        with pytest.raises(ValueError, match=r"SPARSEBERT_CACHE_BYTES: .* is no number of bytes"):
            memory.cache_bytes()
    with pytest.raises(ValueError, match="set_cache_bytes: limit=-1 but must be at least 0"):
        set_cache_bytes(-1)
    with pytest.raises(TypeError, match="set_cache_bytes: limit must be an integer, got str"):
        set_cache_bytes("1")  # type: ignore[arg-type]
    set_cache_bytes(7)
    try:
        assert memory.cache_bytes() == 7
    finally:
        monkeypatch.undo()
        set_cache_bytes(None)


# ------------------------------------------------------------------------ forks


def in_a_fork(action: Callable[[], bool]) -> bool:
    """Whether `action` comes to an end in a forked child, and is true there."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that hangs
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_that_another_thread_holds_is_free_in_a_fork() -> None:
    lock, held, done = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def take() -> bool:
        with lock:
            return True

    try:
        assert in_a_fork(take)
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_compiles_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread is in the middle of everything that has a lock: plans, covers, the memory."""
    from sparsebert.compiler import aim

    plans = MaskPlans(patterns.random(80, 0.3, seed=77))
    whole = sb.compile_plan(patterns.random(80, 0.3, seed=78), target="cpu")
    search, inside, go_on = aim.best_cover, threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=lambda: ready(plans, 60)),
        threading.Thread(target=lambda: whole.transposed),
    ]

    def wait(*args: object) -> object:
        if threading.current_thread() in threads:
            with memory._lock:
                inside.set()
                go_on.wait()
        return search(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(aim, "best_cover", wait)
    for thread in threads:
        thread.start()
    inside.wait()
    time.sleep(0.05)  # for the other to come to the memory's lock, or to its own

    def use() -> bool:
        tiles = whole.transposed
        plan: AttentionPlan = ready(plans, 60)
        return plan.q_len == 60 and tiles.num_rows == 80 and remembered_bytes() > 0

    try:
        assert in_a_fork(use)
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
