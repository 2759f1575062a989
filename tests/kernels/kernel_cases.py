"""Cases for the Triton kernels: tiles made by hand, inputs, and what the results must be.

Without a GPU the kernels run in Triton's interpreter (`conftest.py` asks for it before anything
imports a kernel), with one they run on it.
"""

import contextlib
import dataclasses
import math

import numpy as np
import torch

from sparsebert import dropout
from sparsebert.backends import execution, triton
from sparsebert.backends.base import Call, Upstream
from sparsebert.backends.program import Part
from sparsebert.backends.triton_pack import pack_program
from sparsebert.kernels.program import KernelProgram
from sparsebert.testing import expected_attention
from sparsebert.testing.arithmetic import Arithmetic
from sparsebert.testing.outcome import Outcome
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.format import TileSet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESULTS = ("o", "lse", "dq", "dk", "dv")
_GUARD = 4096  # numbers on each side of a guarded tensor


def cover(mask: np.ndarray, heights: tuple[int, ...], parts: int, seed: int) -> TileSet:
    """Tiles of bool [U, rows, cols]: disjoint parts, each with its own row order and height."""
    rng = np.random.default_rng(seed)
    groups = []
    for head, dense in enumerate(mask):
        owner = rng.integers(parts, size=(dense.shape[0], -(-dense.shape[1] // 8)))
        owner = owner.repeat(8, axis=1)[:, : dense.shape[1]]
        for part in range(parts):
            height = heights[part % len(heights)]
            bits = np.packbits(dense & (owner == part), axis=-1, bitorder="little")
            rows = rng.permutation(len(dense)) if parts > 1 else np.arange(len(dense))
            rows = np.pad(rows, (0, -len(rows) % height), constant_values=-1)
            groups.append(TileGroup(head, bits, rows.reshape(-1, height)))
    return build_tile_set(groups, *mask.shape)


def make_program(mask, heights=(64,), parts=1, device=DEVICE):
    """A program of bool [H, N, M] (or [1, N, M] for any number of heads)."""
    distinct, head_map = np.unique(mask.numpy(), axis=0, return_inverse=True)
    head_map = head_map.reshape(-1)
    queries = cover(distinct, heights, parts, seed=1)
    keys = cover(np.ascontiguousarray(distinct.transpose(0, 2, 1)), heights, parts, seed=2)
    return pack_program(queries, keys, head_map).to(device)


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination of features."""

    n: int = 65
    m: int = 65
    heads: int = 2
    kv_heads: int = 2
    d: int = 16
    dtype: torch.dtype = torch.float32
    heights: tuple[int, ...] = (64,)
    parts: int = 1
    full: int = 0  # leading columns that every row attends to
    key_mask: bool = False
    hidden: int = 1  # with key_mask, leading keys of the second sample that are not real
    dropout_p: float = 0.0
    one_mask: bool = False  # one mask head for all heads
    grad_lse: bool = False
    transposed: bool = False  # memory order [B, N, H, D]
    scale: float | None = None
    score_size: float = 0.0  # nats; then a row's keys score so, or all minus so, others contrary
    value_size: float = 1.0  # of v and of the gradient of o
    seed: int = 7

    def tensors(self):
        """q, k, v, mask [H or 1, N, M], key_mask, with dead rows and unused keys.

        Keys that the key mask hides hold NaN and infinity.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def normal(heads, length):
            shape = (2, length, heads, self.d) if self.transposed else (2, heads, length, self.d)
            x = torch.randn(shape, generator=generator).to(self.dtype)
            return (x.transpose(1, 2) if self.transposed else x).to(DEVICE)

        q = normal(self.heads, self.n)
        k, v = (normal(self.kv_heads, self.m) for _ in range(2))
        v = v * self.value_size
        mask_heads = 1 if self.one_mask else self.heads
        mask = torch.rand(mask_heads, self.n, self.m, generator=generator) < 0.2
        mask[:, :, : self.full] = True
        if self.score_size:
            # Rows attend to keys of one sign of q's and k's largest entry, tiles to both.
            row_key, key = torch.arange(self.n) // 16 % 2, torch.arange(self.m) // 40 % 2
            mask |= torch.arange(self.n)[:, None] < 32
            mask &= row_key[:, None] == key
            size = (self.score_size / self.used_scale) ** 0.5
            signs = torch.tensor([-1.0, 1.0])
            sign = signs[torch.randint(2, (self.n,), generator=generator)]
            q[..., 0], k[..., 0] = size * sign.to(q), size * signs[key].to(k)
        if self.n > 1 and not self.full:
            mask[:, self.n // 2] = False
            mask[:, :, self.m // 3] = False
        key_mask = None
        if self.key_mask:
            key_mask = torch.rand(2, self.m, generator=generator) < 0.7
            key_mask[1, : self.hidden] = False
            if self.hidden == 1:
                mask[:, 0] = False  # a row that only the key mask kills
                mask[:, 0, 0] = True
            key_mask = key_mask.to(DEVICE)
            hidden = ~key_mask[:, None, :, None]
            k.masked_fill_(hidden, math.nan), v.masked_fill_(hidden, math.inf)
        return q, k, v, mask, key_mask

    @property
    def used_scale(self) -> float:
        """What scores are multiplied with."""
        return self.d**-0.5 if self.scale is None else self.scale


@contextlib.contextmanager
def guarded_memory(monkeypatch):
    """New memory holds NaN and lies between guards; on leaving, nothing was written to them."""
    guards = []
    plain = torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        shape = plain(self, *size, device="meta").shape
        count = math.prod(shape)
        if not (options.get("dtype") or self.dtype).is_floating_point or not count:
            return plain(self, *size, **options)
        whole = plain(self, count + 2 * _GUARD, **options).fill_(math.nan)
        guards.extend([whole[:_GUARD].fill_(-77.0), whole[_GUARD + count :].fill_(-77.0)])
        return whole[_GUARD : _GUARD + count].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        yield
    assert guards
    for guard in guards:
        assert (guard == -77.0).all(), "written outside of a tensor"


def forward(q, k, v, key_mask, seed, program, scale, p):
    """o and LSE, as the op gives them."""
    parts = (Part(triton.BACKEND, None, program),)
    return execution.forward(Call(q, k, v, key_mask, seed, scale, p), parts)


def backward(grad_o, grad_lse, q, k, v, o, lse, key_mask, seed, program, scale, p):
    """dq, dk, dv likewise."""
    parts = (Part(triton.BACKEND, None, program),)
    call = Call(q, k, v, key_mask, seed, scale, p)
    return execution.backward(call, parts, Upstream(o, lse, grad_o, grad_lse))


def run(case: Case, monkeypatch, program=None) -> tuple[KernelProgram, list[Outcome]]:
    """Forward and backward of one case against what they must be; `program` runs its mask.

    Returns the program and how far each result is from its bound.
    """
    q, k, v, mask, key_mask = case.tensors()
    program = program or make_program(mask, case.heights, case.parts)
    scale, p = case.used_scale, case.dropout_p
    seed = keep = None
    if p:
        seed = torch.tensor([123456789012345678], device=DEVICE)
        keep = dropout.keep_mask(2, case.heads, case.n, case.m, p, seed=seed, device=DEVICE)
    torch.manual_seed(case.seed)
    grad_o = torch.randn_like(q) * case.value_size
    grad_lse = torch.randn(q.shape[:3], device=DEVICE) * case.value_size
    grad_lse = grad_lse if case.grad_lse else None

    with guarded_memory(monkeypatch):
        o, lse = forward(q, k, v, key_mask, seed, program, scale, p)
        gradients = backward(grad_o, grad_lse, q, k, v, o, lse, key_mask, seed, program, scale, p)
    assert o.transpose(1, 2).is_contiguous() and lse.dtype == torch.float32
    assert all(x.dtype == q.dtype for x in (o, *gradients))
    expected = expected_attention(
        q, k, v, mask.to(DEVICE), scale=scale, key_mask=key_mask, keep_mask=keep, dropout_p=p,
        grad_o=grad_o, grad_lse=grad_lse,
        arithmetic=Arithmetic.of(q, passes_on=program.queries.chained),
    )  # fmt: skip
    outcomes = expected.outcomes(dict(zip(RESULTS, (o, lse, *gradients), strict=True)))
    assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))
    dead = expected.exact["lse"] == -math.inf
    assert not o[dead].any() and not gradients[0][dead].any()
    return program, outcomes


def forward_and_backward(q, k, v, key_mask, program, saved=None, grad_o=None):
    """o, LSE, dq, dk, dv; the backward pass may get another o and LSE, `saved`."""
    o, lse = forward(q, k, v, key_mask, None, program, 0.25, 0.0)
    saved = saved or (o, lse)
    if grad_o is None:
        grad_o = torch.ones_like(o, memory_format=torch.contiguous_format)
    gradients = backward(grad_o, None, q, k, v, *saved, key_mask, None, program, 0.25, 0.0)
    return o, lse, *gradients
