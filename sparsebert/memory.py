"""What is remembered between calls, and one bound in bytes for all of it together.

Whoever remembers plans (or other large values) has a `Shelf`. All shelves share the bound: where
they hold more, what was used least recently is forgotten, on whichever shelf it stands. Bytes are
those of the arrays and tensors themselves, on every device, each counted once however many plans
share it. A value that is forgotten but still held elsewhere is found again; what a shelf holds
goes with its owner.

The newest value of a shelf stays in any case, so that one plan beyond the bound works; and so does
what somebody holds, as each layer of a model holds the plan that it used last.

The bound is the environment variable SPARSEBERT_CACHE_BYTES, or 512 MiB; `set_cache_bytes` changes
it.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np
import torch

from sparsebert.support import checks
from sparsebert.support.forks import ForkSafeLock

VARIABLE = "SPARSEBERT_CACHE_BYTES"
DEFAULT_BYTES = 512 << 20

Value = TypeVar("Value")
Buffer = np.ndarray | torch.Tensor
Place = tuple[int, Hashable]
"""A shelf's number, and a key on it."""

_lock = ForkSafeLock()
_numbers = itertools.count()
_limit: int | None = None
_OFTEN = 20
_MANY = 4096
_repetitions = 0
"""How often something forgotten was made again, under the present bound."""


def cache_bytes() -> int:
    """The bound for all that is remembered, in bytes.

    Raises ValueError if SPARSEBERT_CACHE_BYTES is no number of bytes.

    >>> cache_bytes() >= 0
    True
    """
    if _limit is not None:
        return _limit
    text = os.environ.get(VARIABLE)
    if text is None:
        return DEFAULT_BYTES
    if not text.strip().isdecimal():
        raise ValueError(
            f"{VARIABLE}: {text!r} is no number of bytes; set it to an integer of at least 0, "
            f"like {DEFAULT_BYTES}, or unset it"
        )
    return int(text)


def set_cache_bytes(limit: int | None) -> None:
    """Bound what is remembered to `limit` bytes; None goes back to the environment's value.

    What is over the new bound is forgotten at once. Raises TypeError or ValueError if `limit` is
    not an integer of at least 0.

    >>> set_cache_bytes(1 << 30)
    >>> set_cache_bytes(None)
    """
    global _limit, _repetitions
    if limit is not None:
        limit = checks.integer("set_cache_bytes", "limit", limit, 0)
    with _lock:
        _limit, _repetitions = limit, 0
        _ledger.shrink()


def remembered_bytes() -> int:
    """Bytes of all that is remembered now."""
    with _lock:
        _ledger.drop_dead_shelves()
        return _ledger.total


def has_grown(value: object) -> None:
    """To be called where a value, remembered or not, has got more arrays or tensors."""
    with _lock:
        _ledger.measure_again(value)
        _ledger.shrink()


class Shelf(Generic[Value]):
    """Values by key, forgotten as the bound for all shelves demands.

    Args:
        buffers: the arrays and tensors of a value.

    Attributes:
        items: what stands on the shelf. Read it freely; change it by the methods alone.
    """

    def __init__(self, buffers: Callable[[Value], Iterable[Buffer]]) -> None:
        self.items: dict[Hashable, Value] = {}
        self.buffers = buffers
        self._number = next(_numbers)
        self._alive: weakref.WeakValueDictionary[Hashable, Value] = weakref.WeakValueDictionary()
        self._held: weakref.WeakKeyDictionary[object, set[Hashable]] = weakref.WeakKeyDictionary()
        self._forgotten: set[Hashable] = set()
        self._newest: Hashable = None

    def get(self, key: Hashable) -> Value | None:
        """The value, if it is remembered, or was and is still held elsewhere."""
        with _lock:
            value = self.items.get(key)
            if value is None:
                value = self._alive.get(key)
                if value is not None:
                    self.put(key, value)
                return value
            self._newest = key
            _ledger.use((self._number, key))
            return value

    def put(self, key: Hashable, value: Value) -> None:
        """Remember a value; others may be forgotten for it."""
        with _lock:
            if key in self._forgotten and key not in self._alive:
                _count_repetition()
            self._newest = key
            self.items[key] = self._alive[key] = value
            _ledger.enter((self._number, key), self)
            _ledger.shrink()

    def hold(self, key: Hashable, owner: object, instead_of: Hashable = None) -> None:
        """Do not forget this one as long as `owner` is there, or holds another instead of it."""
        with _lock:
            held = self._held.setdefault(owner, set())
            held.add(key)
            if instead_of not in (None, key):
                held.discard(instead_of)
                if instead_of in self.items:  # it was in use until now
                    _ledger.use((self._number, instead_of))
                    _ledger.shrink()

    def kept(self) -> set[Hashable]:
        """The keys of values that stay whether there is room or not."""
        return {self._newest}.union(*self._held.values())

    def forget(self, key: Hashable) -> None:
        """Drop a value, and remember that it was there, unless there were very many."""
        del self.items[key]
        if len(self._forgotten) >= _MANY:
            self._forgotten.clear()
        self._forgotten.add(key)


Arguments = ParamSpec("Arguments")


def remember(
    function: Callable[Arguments, np.ndarray],
) -> Callable[Arguments, np.ndarray]:
    """Remember the arrays that a function returned, by its arguments."""
    shelf: Shelf[np.ndarray] = Shelf(lambda array: [array])

    @functools.wraps(function)
    def remembering(*args: Arguments.args, **kwargs: Arguments.kwargs) -> np.ndarray:
        key = args, tuple(sorted(kwargs.items()))
        found = shelf.get(key)
        if found is None:
            found = function(*args, **kwargs)
            shelf.put(key, found)
        return found

    return remembering


class _Ledger:
    """Who holds which buffers, and their bytes in all; entries used least recently come first."""

    def __init__(self) -> None:
        self.total = 0
        self._shelves: collections.OrderedDict[Place, weakref.ref[Shelf[Any]]] = (
            collections.OrderedDict()
        )
        self._held: dict[Place, tuple[int, set[Place]]] = {}
        self._users: collections.Counter[Place] = collections.Counter()
        self._size: dict[Place, int] = {}
        self._has_dead_shelves = False

    def use(self, place: Place) -> None:
        """Note that an entry was asked for."""
        self._shelves.move_to_end(place)

    def enter(self, place: Place, shelf: Shelf[Any]) -> None:
        """Count a new entry, or one that has changed."""
        if self._has_dead_shelves:  # its memory may be where theirs was
            self.drop_dead_shelves()
        self.remove(place)
        self._shelves[place] = weakref.ref(shelf, self._note_dead_shelf)
        value = shelf.items[place[1]]
        sizes = dict(map(_measure, shelf.buffers(value)))
        for buffer, size in sizes.items():
            self._users[buffer] += 1
            if self._users[buffer] == 1:
                self._size[buffer] = size
                self.total += size
        self._held[place] = id(value), set(sizes)

    def remove(self, place: Place) -> None:
        """Do not count an entry any more."""
        self._shelves.pop(place, None)
        for buffer in self._held.pop(place, (0, set()))[1]:
            self._users[buffer] -= 1
            if not self._users[buffer]:
                del self._users[buffer]
                self.total -= self._size.pop(buffer)

    def measure_again(self, value: object) -> None:
        """Count the entries of a value that has changed."""
        for place in [place for place, (held, _) in self._held.items() if held == id(value)]:
            shelf = self._shelves[place]()
            if shelf is not None and place[1] in shelf.items:
                self.enter(place, shelf)

    def drop_dead_shelves(self) -> None:
        """Remove the entries of owners that are gone."""
        self._has_dead_shelves = False
        for place in [place for place, shelf in self._shelves.items() if shelf() is None]:
            self.remove(place)

    def _note_dead_shelf(self, shelf: weakref.ref[Shelf[Any]]) -> None:
        # Only noted: this may run at any moment, also while the entries are changed.
        self._has_dead_shelves = True

    def shrink(self) -> None:
        """Forget what was used least recently until the rest is within the bound."""
        limit = cache_bytes()
        if self.total <= limit:
            return
        self.drop_dead_shelves()
        kept: dict[int, set[Hashable]] = {}
        for place, reference in list(self._shelves.items()):
            shelf = reference()
            if self.total <= limit or shelf is None:
                continue
            number, key = place
            if number not in kept:
                kept[number] = shelf.kept()
            if key not in kept[number]:
                self.remove(place)
                shelf.forget(key)

    def counted_again(self) -> _Ledger:
        """A ledger of the same entries, from what stands on their shelves."""
        again = _Ledger()
        for place, reference in self._shelves.items():
            shelf = reference()
            if shelf is not None and place[1] in shelf.items:
                again.enter(place, shelf)
        return again


_ledger = _Ledger()


def _count_again() -> None:
    global _ledger
    _ledger = _ledger.counted_again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_again)  # another thread may have been at work on it


def _measure(buffer: Buffer) -> tuple[Place, int]:
    """What identifies a piece of memory, and its size in bytes."""
    if isinstance(buffer, np.ndarray):
        return (0, buffer.__array_interface__["data"][0]), buffer.nbytes
    if buffer.device.type == "meta":
        return (-1, None), 0
    storage = buffer.untyped_storage()
    where = 0 if buffer.device.type == "cpu" else 1 + (buffer.device.index or 0)
    return (where, storage.data_ptr()), storage.nbytes()


def _count_repetition() -> None:
    global _repetitions
    _repetitions += 1
    if _repetitions == _OFTEN:
        warnings.warn(
            f"sparsebert: {_OFTEN} times a plan was made again that had been forgotten, because "
            f"plans may take {cache_bytes()} bytes together; raise {VARIABLE}, or call "
            "sparsebert.memory.set_cache_bytes",
            RuntimeWarning,
            stacklevel=4,
        )
