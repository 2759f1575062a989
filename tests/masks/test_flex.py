"""FlexAttention's mask_mods and BlockMasks, to and from masks."""

import functools
import shutil
import warnings

import numpy as np
import pytest
import torch

import sparsebert.masks.flex
from sparsebert.masks import AttentionMask


def random_mask(*shape: int, p: float = 0.4, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


@pytest.mark.parametrize("chunk", [1, 40, 1 << 21])
def test_mask_mod_is_evaluated_everywhere_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setattr(sparsebert.masks.flex, "CHUNK", chunk)
    documents = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    reach = torch.tensor([1, 2, 9])

    def mod(b, h, q_idx, kv_idx):
        return (documents[q_idx] == documents[kv_idx]) & ((q_idx - kv_idx).abs() <= reach[h] + b)

    mask = AttentionMask.from_mask_mod(mod, num_heads=3, q_len=7, kv_len=9)
    i, j = torch.arange(7)[:, None], torch.arange(9)[None, :]
    near = (i - j).abs() <= reach[:, None, None]
    assert torch.equal(mask.dense()[0], (documents[i] == documents[j]) & near)
    assert "mod" in mask.provenance["mask_mod"]


def test_mask_mod_that_ignores_its_arguments():
    mask = AttentionMask.from_mask_mod(
        lambda b, h, q, k: q.new_ones((), dtype=torch.bool), 2, 3, 5
    )
    assert mask.density == 1
    assert mask.shape == (1, 2, 3, 5)


@pytest.mark.parametrize(
    ("mod", "message"),
    [
        (lambda score, b, h, q, k: score, "mod must be a function"),
        (lambda b, h, q, k: q - k, "must return a bool tensor, got torch.int64"),
        (lambda b, h, q, k: True, "must return a bool tensor, got bool"),
        (random_mask(3, 3), "mod must be a function"),
    ],
)
def test_what_is_no_mask_mod_is_refused(mod, message):
    with pytest.raises(TypeError, match=message):
        AttentionMask.from_mask_mod(mod, 1, 3, 3)


def decides(b, h, q_idx, kv_idx):
    if q_idx > kv_idx:
        return q_idx - kv_idx < 3
    return kv_idx == q_idx


@pytest.mark.parametrize(
    "mod",
    [
        decides,
        lambda b, h, q, k: (q >= k and q - k < 3) == 1,
        lambda b, h, q, k: not q < k,
        lambda b, h, q, k: q in (3, 4),
        lambda b, h, q, k: min(q, 3) < k,
        lambda b, h, q, k: int(q) > 3,
        lambda b, h, q, k: [True, False, True][q],
        lambda b, h, q, k: np.abs(q - k) < 3,
        functools.partial(lambda limit, b, h, q, k: q < k or q < limit, 2),
    ],
)
def test_a_mask_mod_that_decides_in_python_learns_how_to_write_it(mod):
    with pytest.raises(ValueError, match=r"from_mask_mod: mod takes .*torch\.where") as caught:
        AttentionMask.from_mask_mod(mod, 1, 3, 3)
    assert "issue" not in str(caught.value) and caught.value.__suppress_context__
    if mod is decides:
        line = decides.__code__.co_firstlineno + 1
        assert f"at line {line} (if q_idx > kv_idx:), but" in str(caught.value)


def test_other_errors_of_a_mask_mod_are_its_own():
    with pytest.raises(RuntimeError, match="size of tensor"):
        AttentionMask.from_mask_mod(
            lambda b, h, q, k: (q + torch.ones(2)) > torch.ones(3), 1, 3, 3
        )


def test_block_masks_are_no_mask_mods():
    from torch.nn.attention.flex_attention import BlockMask

    lists = torch.tensor([[[1]]]), torch.tensor([[[[0]]]])
    blocks = BlockMask.from_kv_blocks(*lists, seq_lengths=(128, 128))
    with pytest.raises(ValueError, match=r"noop_mask, .* the mask is in the lists"):
        AttentionMask.from_mask_mod(blocks.mask_mod, 1, 128, 128)
    with pytest.raises(TypeError, match=r"got BlockMask; .*from_mask_mod\(block_mask\.mask_mod"):
        AttentionMask.from_mask_mod(blocks, 1, 128, 128)


# heads of the mask, heads of q, N, M, block size
FLEX_CASES = [
    (2, 2, 100, 150, 32),
    (1, 3, 200, 70, 64),
    (3, 3, 128, 256, 128),
    (1, 2, 130, 130, 128),
    (2, 2, 37, 41, (16, 32)),
    (1, 1, 1, 1, 128),
]


def flex_case(heads, q_heads, n, m):
    dense = random_mask(heads, n, m, p=0.15)
    dense[0, :40, :40] = True  # full blocks
    dense[0, 5:6] = False  # a dead row
    dense[0, 64:] = False  # empty blocks
    q, k, v = (torch.randn(2, q_heads, length, 16) for length in (n, m, m))
    with_zeros = dense.expand(q_heads, n, m)
    scores = torch.einsum("bhid,bhjd->bhij", q.double(), k.double()) / 4
    weights = scores.masked_fill(~with_zeros, -torch.inf).softmax(-1).nan_to_num(0)
    return dense, (q, k, v), torch.einsum("bhij,bhjd->bhid", weights, v.double())


@pytest.mark.parametrize(("heads", "q_heads", "n", "m", "block"), FLEX_CASES)
def test_block_mask_is_the_same_mask(heads, q_heads, n, m, block):
    from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

    dense, (q, k, v), expected = flex_case(heads, q_heads, n, m)
    mask = AttentionMask.from_dense(dense)
    blocks = mask.to_block_mask(block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "called without torch.compile"
        out = flex_attention(q, k, v, block_mask=blocks)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)

    assert torch.equal(create_mask(blocks.mask_mod, 1, heads, n, m, device="cpu")[0], dense)
    ours = create_block_mask(blocks.mask_mod, 1, heads, n, m, device="cpu", BLOCK_SIZE=block)
    assert blocks.shape == ours.shape
    assert blocks.BLOCK_SIZE == ours.BLOCK_SIZE
    assert torch.equal(blocks.to_dense(), ours.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(blocks, name), getattr(ours, name)), name
    for prefix in ("kv", "full_kv", "q", "full_q"):
        number = getattr(blocks, f"{prefix}_num_blocks")
        listed = torch.arange(getattr(blocks, f"{prefix}_indices").shape[-1]) < number[..., None]
        left, right = (getattr(each, f"{prefix}_indices")[listed] for each in (blocks, ours))
        assert torch.equal(left, right), prefix


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs C++")
def test_block_mask_in_compiled_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    dense, (q, k, v), expected = flex_case(2, 2, 100, 150)
    blocks = AttentionMask.from_dense(dense).to_block_mask(32)
    out = torch.compile(flex_attention, dynamic=False)(q, k, v, block_mask=blocks)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


def test_a_block_with_one_gap_is_not_full():
    dense = torch.ones(64, 64, dtype=torch.bool)
    dense[3, 60] = False
    blocks = AttentionMask.from_dense(dense).to_block_mask(32)
    assert blocks.full_kv_num_blocks.tolist() == [[[1, 2]]]
    assert blocks.kv_num_blocks.tolist() == [[[1, 0]]]
    assert blocks.kv_indices[0, 0, 0, 0] == 1


def test_block_mask_and_back():
    mask = AttentionMask.from_dense(random_mask(3, 20, 33))
    blocks = mask.to_block_mask(16)
    assert AttentionMask.from_mask_mod(blocks.mask_mod, 3, 20, 33) == mask
