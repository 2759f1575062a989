"""What may be passed as a mask, and that the advice for the rest does not change its meaning."""

import re

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import sparsebert as sb
from sparsebert.masks.mask_input import bool_array, numbers_in, remedy

ALLOWED = torch.tensor([[True, False, False], [True, True, False], [False, True, True]])
INF = float("inf")


def additive(hidden: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(3, 3, dtype=dtype).masked_fill(~ALLOWED, hidden)


def advised(value: object, means: str = "may attend") -> torch.Tensor:
    """What one gets by writing what the advice says; `means` picks one of two readings."""
    text = remedy(value)
    written = re.findall(
        r"(?:numpy\.asarray\(mask\)$"
        r"|(?:numpy\.array\(mask\)|numpy\.asarray\(mask\)|\(mask != 0\)|mask)"
        r"(?: (?:==|!=|>) -?[\d.]+|\.bool\(\)|\.to_dense\(\)(?: != 0)?|\.filled\(False\)"
        r"|\.toarray\(\)))(?: if 1 means (?:may attend|hidden))?",
        text,
    )
    chosen = [each for each in written if " if 1 means" not in each or each.endswith(means)]
    assert chosen, text
    expression = chosen[0].split(" if ")[0]
    result = eval(expression, {"mask": value, "numpy": np})
    return torch.from_numpy(np.array(result))


@pytest.mark.parametrize("hidden", [-INF, -1e4, -1e9, torch.finfo(torch.float32).min])
def test_advice_for_additive_masks_keeps_what_may_attend(hidden: float) -> None:
    for value in (additive(hidden), additive(hidden).numpy(), additive(hidden).double().tolist()):
        assert advised(value).equal(ALLOWED)
        assert ".bool()" not in remedy(value) and "!= 0" not in remedy(value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.int32])
def test_advice_for_additive_masks_of_other_dtypes(dtype: torch.dtype) -> None:
    assert advised(additive(-1e4, dtype)).equal(ALLOWED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.float16])
def test_advice_for_0_and_1(dtype: torch.dtype) -> None:
    for value in (ALLOWED.to(dtype), ALLOWED.to(dtype).numpy(), ALLOWED.to(dtype).tolist()):
        assert advised(value).equal(ALLOWED)
        assert advised(value, "hidden").equal(~ALLOWED)
        if not isinstance(value, torch.Tensor):
            assert ".bool()" not in remedy(value)


def test_other_numbers() -> None:
    assert advised(ALLOWED * 0.9 + 0.05).equal(ALLOWED)
    biases = torch.tensor([[-0.5, -INF, -INF], [-1.0, -0.5, -INF], [-INF, -2.0, -0.5]])
    assert advised(biases).equal(ALLOWED)
    assert "cannot keep the others" in remedy(biases)
    assert "say where a query may attend" in remedy(torch.randn(3, 3))
    assert "NaN" in remedy(torch.full((3, 3), torch.nan))
    assert "from_packed" in remedy(np.packbits(ALLOWED.numpy(), axis=1))
    zeros = remedy(torch.zeros(3, 3))
    assert "mask == 0 if it is an additive mask" in zeros and "mask.bool() if 1 means" in zeros
    assert "say where" in remedy(np.array([["a", "b"]]))
    assert "mask.bool() for a 0/1 mask" in remedy(torch.ones(3, 3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1], "0/1"), ([1, 1], "0/1"), ([0, 0], "0"), ([0, -INF], "additive"),
        ([-1e4, -1e4], "additive"), ([0.25, 1], "shares"), ([0, -2], "scores"),
        ([0, INF], "scores"), ([-2, -INF], "biases"), ([1, -INF], "biases"), ([0, np.nan], "NaN"),
    ],
)  # fmt: skip
def test_numbers_in(values: list[float], kind: str) -> None:
    assert numbers_in(torch.tensor(values, dtype=torch.float32)) == kind
    assert numbers_in(np.array(values)) == kind
    assert numbers_in(np.array(values, dtype=">f4")) == kind  # not the machine's byte order


class Scipy:
    """Stands for scipy.sparse.csr_array, which is no dependency."""

    def __ne__(self, other: object) -> "Scipy":  # type: ignore[override]
        return self

    def toarray(self) -> np.ndarray:
        return ALLOWED.numpy()


Scipy.__module__ = "scipy.sparse._csr"


def test_matrices() -> None:
    assert advised(Scipy()).equal(ALLOWED)
    assert advised(ALLOWED.to_sparse()).equal(ALLOWED)
    assert advised(ALLOWED.int().to_sparse()).equal(ALLOWED)
    masked = np.ma.masked_array(np.ones((3, 3), dtype=bool), mask=~ALLOWED.numpy())
    assert advised(masked).equal(ALLOWED)
    pandas = pytest.importorskip("pandas")
    assert advised(pandas.DataFrame(ALLOWED.numpy())).equal(ALLOWED)
    assert "say where" in remedy(1.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"patterns\.star\(512\)"),
        ("star", r"patterns\.build\(name, seq_len\)"),
        ("masks/star.safetensors", r"AttentionMask\.load\(path\)"),
        (lambda b, h, q, k: q >= k, r"AttentionMask\.from_mask_mod\(mask_mod, num_heads"),
        (sb.patterns.star, r"call it: sparsebert\.patterns\.star\(seq_len\)"),
        ([sb.patterns.star(4)] * 2, "stack_heads"),
        ([ALLOWED, ALLOWED], r"torch\.stack\(mask\)"),
        ([[True], [True, False]], "different lengths"),
        (torch.ones(3, 3, dtype=torch.bool, device="meta"), "has no values"),
        (torch.ones(2, 1, 3, 3), r"take one example's, mask\[0\]"),
        (torch.ones(2, 5, dtype=torch.int64), "of padding, .* in the model's call"),
    ],
)
def test_advice_fits_what_came(value: object, message: str) -> None:
    assert re.search(message, remedy(value)), remedy(value)
    assert ".bool()" not in remedy(value) or isinstance(value, torch.Tensor)


def test_own_types_and_block_masks() -> None:
    blocks = create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 128, 128, device="cpu")
    assert "from_mask_mod(block_mask.mask_mod" in remedy(blocks)
    plan = sb.compile_plan(sb.patterns.star(64), target="cpu")
    assert "plan.mask" in remedy(plan)
    dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=1, seq_len=8)
    assert "dam.binarize" in remedy(dam)
    assert "already" in remedy(sb.patterns.star(8))


WAYS = {
    "from_dense": sb.AttentionMask.from_dense,
    "AttentionMask": sb.AttentionMask,
    "compile_plan": sb.compile_plan,
    "SparseSelfAttention": lambda mask: sb.SparseSelfAttention(8, 2, mask),
    "sparse_attention": lambda mask: sb.sparse_attention(*torch.zeros(3, 1, 2, 3, 4), mask),
    "reference_attention": lambda mask: sb.reference_attention(*torch.zeros(3, 1, 2, 3, 4), mask),
    "&": lambda mask: sb.patterns.star(3) & mask,
    "stack_layers": lambda mask: sb.AttentionMask.stack_layers([mask]),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_function_gives_the_advice_and_none_converts(name: str) -> None:
    for value in (additive(-INF), additive(-INF).numpy(), "star", None, lambda b, h, q, k: q >= k):
        with pytest.raises(TypeError, match=f"^{name}: ") as caught:
            WAYS[name](value)
        text = str(caught.value)
        assert ".bool()" not in text and "!= 0" not in text, text
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            assert remedy(value) in text
        else:
            assert "mask == 0" in text
    if name not in ("from_dense", "SparseSelfAttention", "reference_attention"):
        with pytest.raises(TypeError, match=r"AttentionMask\.from_dense\(mask\)"):
            WAYS[name](ALLOWED)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_arrays_are_taken_where_tensors_are() -> None:
    expected = sb.AttentionMask.from_dense(ALLOWED)
    for value in (ALLOWED.numpy(), np.matrix(ALLOWED.numpy()), ALLOWED.numpy()[:, ::-1][:, ::-1]):
        assert type(bool_array("f", "mask", value)) is np.ndarray
        assert sb.AttentionMask.from_dense(value) == expected
        assert sb.SparseSelfAttention(8, 2, value).mask == expected
        q, k, v = torch.randn(3, 1, 2, 3, 4)
        assert sb.reference_attention(q, k, v, value).equal(
            sb.reference_attention(q, k, v, expected)
        )


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_makes_a_mask_that_saves_and_loads(tmp_path) -> None:
    """np.matrix has two dimensions whatever it is reshaped to: scipy's todense() gives one."""
    mask = sb.AttentionMask.from_dense(np.matrix(ALLOWED.numpy()))
    assert mask.shape == (1, 1, 3, 3)
    mask.save(tmp_path / "mask")
    assert sb.AttentionMask.load(tmp_path / "mask") == mask
    packed = sb.AttentionMask.from_packed(np.matrix(mask.bits[0, 0]), 3)
    assert packed == mask and packed.shape == mask.shape


@pytest.mark.parametrize("hidden", [-INF, -1e4])
def test_key_masks(hidden: float) -> None:
    """An additive mask of padding: its .bool() is the complement."""
    plan = sb.compile_plan(sb.patterns.dense(3), target="cpu")
    q, k, v = torch.zeros(3, 1, 2, 3, 4)
    with pytest.raises(TypeError, match=r"key_mask == 0$"):
        sb.sparse_attention(q, k, v, plan, key_mask=additive(hidden)[:1])
    with pytest.raises(TypeError, match=r"mask\.bool\(\)$"):
        sb.sparse_attention(q, k, v, plan, key_mask=ALLOWED[:1].long())
    module, x = sb.SparseSelfAttention(8, 2, ALLOWED), torch.zeros(1, 3, 8)
    with pytest.raises(TypeError, match=r"key_padding_mask != 0$"):
        module(x, key_padding_mask=additive(hidden)[:1])
    with pytest.raises(TypeError, match=r"attention_mask == 0$"):
        module(x, key_padding_mask=ALLOWED[:1].long())
    with pytest.raises(TypeError, match="got an array bool"):
        module(x, key_padding_mask=ALLOWED[:1].numpy())  # type: ignore[arg-type]


def test_masks_of_padding_are_sent_to_where_they_belong() -> None:
    with pytest.raises(ValueError, match="forward's key_padding_mask"):
        sb.SparseSelfAttention(8, 2, torch.ones(2, 5, dtype=torch.bool))
