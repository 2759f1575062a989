"""AttentionMask: packing, algebra, parts, provenance, errors."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sparsebert as sb
import sparsebert.masks.flex
from sparsebert.masks import AttentionMask

quick = settings(max_examples=60)


def random_mask(*shape: int, p: float = 0.4, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


def padding_clear(mask: AttentionMask) -> bool:
    every_bit = np.unpackbits(mask.bits, axis=-1, bitorder="little")
    return not every_bit[..., mask.kv_len :].any()


@st.composite
def dense_masks(draw, count=1):
    """`count` bool arrays of one shape [L, H, N, M]."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    shape += (draw(st.integers(1, 12)), draw(st.integers(1, 20)))
    return [draw(hnp.arrays(np.bool_, shape)) for _ in range(count)]


# -------------------------------------------------------------------- packing


@quick
@given(dense_masks())
def test_dense_gives_back_what_was_packed(arrays):
    (array,) = arrays
    mask = AttentionMask.from_dense(torch.from_numpy(array))
    assert mask.shape == array.shape
    assert (mask.num_layers, mask.num_heads, mask.q_len, mask.kv_len) == array.shape
    assert mask.dense().dtype == torch.bool
    assert np.array_equal(mask.dense().numpy(), array)
    assert padding_clear(mask)
    assert AttentionMask.from_dense(array) == mask
    assert AttentionMask.from_packed(mask.bits, mask.kv_len) == mask


def test_bit_order_is_the_documented_one():
    dense = random_mask(3, 19)
    bits = AttentionMask.from_dense(dense).bits
    assert bits.shape == (1, 1, 3, 3)
    assert bits.dtype == np.uint8
    for i in range(3):
        for j in range(19):
            assert (bits[0, 0, i, j // 8] >> (j % 8)) & 1 == dense[i, j]


def test_fewer_dimensions_mean_one_layer_and_one_head():
    dense = random_mask(2, 3, 5, 7)
    assert AttentionMask.from_dense(dense[0, 0]).shape == (1, 1, 5, 7)
    assert AttentionMask.from_dense(dense[0]).shape == (1, 3, 5, 7)
    bits = AttentionMask.from_dense(dense).bits
    assert AttentionMask.from_packed(bits[0, 0], 7).shape == (1, 1, 5, 7)
    assert AttentionMask.from_packed(bits[1], 7) == AttentionMask.from_dense(dense[1])


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_any_strides_are_packed_alike(view):
    dense = {
        "transposed": random_mask(3, 17, 9).mT,
        "strided": random_mask(3, 18, 22)[:, ::2, ::3],
        "expanded": random_mask(5, 9).expand(4, 5, 9),
    }[view]
    assert not dense.is_contiguous()
    assert torch.equal(AttentionMask.from_dense(dense).dense()[0], dense)
    assert torch.equal(AttentionMask.from_dense(dense.numpy()).dense()[0], dense)


def test_bits_are_an_eighth_of_a_bool_tensor():
    assert AttentionMask.from_dense(torch.ones(12, 64, 4096, dtype=torch.bool)).bits.nbytes == (
        12 * 64 * 4096 // 8
    )


# -------------------------------------------------------------------- a frozen value


def test_nothing_changes_a_mask():
    dense = random_mask(4, 9)
    kept = dense.clone()
    packed = AttentionMask.from_dense(dense).bits.copy()
    mask, other = AttentionMask.from_dense(dense), AttentionMask.from_packed(packed, 9)
    dense.fill_(True)
    packed.fill(0)
    mask.dense().fill_(False)
    assert torch.equal(mask.dense()[0, 0], kept)
    assert torch.equal(other.dense()[0, 0], kept)
    modded = AttentionMask.from_mask_mod(lambda b, h, q, k: q == k, 2, 4, 9)
    stacked = AttentionMask.stack_heads([mask, other])
    parts = (mask.layer(0), mask.head(0), mask.crop(2, 3), mask.without_diagonal())
    for built in (mask, other, mask & other, ~mask, modded, stacked, *parts):
        with pytest.raises(ValueError, match="read-only"):
            built.bits[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            built.bits.flags.writeable = True
    for name in ("bits", "shape", "_bits", "anything"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(mask, name, None)
    with pytest.raises(AttributeError, match="immutable"):
        del mask._bits
    with pytest.raises(TypeError, match="from_dense"):
        AttentionMask()


def test_copies_and_pickles_are_equal():
    mask = AttentionMask.from_dense(random_mask(2, 3, 5, 7), provenance={"model": "x"})
    assert copy.deepcopy(mask) is mask
    assert copy.copy(mask) is mask
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask
    assert again.provenance == {"model": "x"}


def test_equality_hash_and_fingerprint_are_about_shape_and_bits():
    dense = random_mask(2, 8, 16)
    mask = AttentionMask.from_dense(dense)
    same = AttentionMask.from_dense(dense.clone(), provenance={"model": "x"})
    assert mask == same
    assert hash(mask) == hash(same)
    assert len({mask, same}) == 1
    flipped = dense.clone()
    flipped[1, 7, 15] ^= True
    others = [
        AttentionMask.from_dense(flipped),
        AttentionMask.from_dense(dense[:, None]),  # same bytes, [2, 1, 8, 16]
        AttentionMask.from_packed(mask.bits.reshape(1, 1, 16, 2), 16),
        AttentionMask.from_packed(mask.bits.reshape(1, 2, 16, 1), 8),
    ]
    for other in others:
        assert mask != other
        assert mask.fingerprint != other.fingerprint
    assert mask != "mask"
    assert mask != dense.numpy().tolist()


def test_fingerprint_does_not_change_between_versions():
    mask = AttentionMask.from_packed(np.array([[0b101], [0b011]], np.uint8), 3)
    assert mask.fingerprint == ("b703deb132a78d9e3f354a6e7668b5f4a239850bcaa88552dea36977c0dde63d")


def test_unequal_shapes_with_equal_bytes_are_unequal_masks():
    """Padded to whole bytes, 1 to 8 keys take the same bytes, and so do axes of other sizes."""
    bits = np.array([[[0b11], [0b01]]], np.uint8)
    masks = [AttentionMask.from_packed(bits, kv_len) for kv_len in range(2, 9)]
    shapes = (1, 2, 1, 1), (2, 1, 1, 1)
    masks += [AttentionMask.from_packed(bits.reshape(shape), 8) for shape in shapes]
    for i, left in enumerate(masks):
        for j, right in enumerate(masks):
            assert (left == right) == (left.shape == right.shape), (i, j)


def test_repr_is_one_short_line():
    mask = AttentionMask.from_dense(torch.eye(4, dtype=torch.bool), provenance={"pattern": "eye"})
    assert repr(mask) == "<AttentionMask eye: 1 layer, 1 head, 4 x 4, density 25.00%>"
    many = AttentionMask.from_dense(torch.ones(2, 3, 4, 5, dtype=torch.bool))
    assert repr(many) == "<AttentionMask: 2 layers, 3 heads, 4 x 5, density 100.00%>"


STRUCTURED = {
    "band": sb.patterns.sliding_window(64, window=3),
    "longformer": sb.patterns.longformer(512, window=8, num_global=2),
    "causal": sb.patterns.causal(64),
    "blocks": sb.patterns.block_local(120, block=12),
    "star": sb.patterns.star(256),
    "heads": sb.patterns.bigbird(256, num_heads=2),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_bits_packed_the_other_way_round_are_refused_or_said_to_be(name):
    """np.packbits packs with the highest bit first; with 8 k keys no padding bit shows it."""
    mask = STRUCTURED[name]
    packed = np.packbits(mask.dense().numpy(), axis=-1)
    with pytest.raises(ValueError, match=r"from_packed: bits look .* pass bitorder='big'"):
        AttentionMask.from_packed(packed, mask.kv_len)
    assert AttentionMask.from_packed(packed, mask.kv_len, bitorder="big") == mask
    other = AttentionMask.from_packed(packed, mask.kv_len, bitorder="little")
    assert other != mask
    assert pickle.loads(pickle.dumps(other)) == other  # not asked again


@pytest.mark.parametrize("length", [64, 128, 130, 512])
def test_no_pattern_looks_packed_the_other_way_round(length):
    masks = [pattern(length) for name, pattern in sb.patterns.PATTERNS.items() if "2d" not in name]
    masks += [sb.patterns.strided(length, stride) for stride in (3, 5, 7, 15)]
    masks += [sb.patterns.dilated_window(length, 6, dilation) for dilation in (3, 5, 15)]
    for mask in masks:
        for each in (mask, ~mask, mask.without_diagonal()):
            assert AttentionMask.from_packed(each.bits, length) == each
    for seed in range(50):
        mask = AttentionMask.from_dense(random_mask(length, length, p=0.1, seed=seed))
        assert AttentionMask.from_packed(mask.bits, length) == mask


def test_padding_shows_the_other_bit_order():
    packed = np.packbits(np.ones((3, 9), dtype=np.bool_), axis=-1)
    with pytest.raises(ValueError, match=r"padding bits after key 8 .* pass bitorder='big'"):
        AttentionMask.from_packed(packed, 9)
    assert AttentionMask.from_packed(packed, 9, bitorder="big").density == 1
    with pytest.raises(ValueError, match=r"padding bits .* pass bitorder='little'"):
        AttentionMask.from_packed(np.array([[0xFF, 0x01]], np.uint8), 9, bitorder="big")
    with pytest.raises(ValueError, match=r"bitorder must be 'little' or 'big', got '<'"):
        AttentionMask.from_packed(packed, 9, bitorder="<")


# -------------------------------------------------------------------- parts


@quick
@given(dense_masks(), st.data())
def test_parts_match_the_dense_parts(arrays, data):
    dense = torch.from_numpy(arrays[0])
    layers, heads, rows, keys = dense.shape
    mask = AttentionMask.from_dense(dense)
    layer = data.draw(st.integers(-layers, layers - 1))
    head = data.draw(st.integers(-heads, heads - 1))
    n, m = data.draw(st.integers(1, rows)), data.draw(st.integers(1, keys))
    assert torch.equal(mask.layer(layer).dense()[0], dense[layer])
    assert torch.equal(mask.head(head).dense()[:, 0], dense[:, head])
    cropped = mask.crop(n, m)
    assert torch.equal(cropped.dense(), dense[:, :, :n, :m])
    assert padding_clear(cropped)
    bare = mask.without_diagonal()
    assert torch.equal(bare.dense(), dense & ~torch.eye(rows, keys, dtype=torch.bool))
    assert bare.without_diagonal() == bare


@quick
@given(dense_masks())
def test_stacking_the_parts_gives_the_whole(arrays):
    mask = AttentionMask.from_dense(arrays[0])
    layers, heads, _, _ = mask.shape
    assert AttentionMask.stack_layers(mask.layer(i) for i in range(layers)) == mask
    assert AttentionMask.stack_heads(mask.head(i) for i in range(heads)) == mask


def test_stacking_spreads_one_head_or_layer_over_many():
    one, many = AttentionMask.from_dense(random_mask(5, 9)), random_mask(3, 5, 9, seed=1)
    layers = AttentionMask.stack_layers([one, AttentionMask.from_dense(many)])
    assert torch.equal(layers.dense()[0], one.dense()[0].expand(3, 5, 9))
    assert torch.equal(layers.dense()[1], many)
    heads = AttentionMask.stack_heads([AttentionMask.from_dense(many[:, None]), one])
    assert heads.shape == (3, 2, 5, 9)
    assert torch.equal(heads.dense()[:, 1], one.dense()[0].expand(3, 5, 9))


@quick
@given(dense_masks())
def test_density_is_the_share_of_ones(arrays):
    mask = AttentionMask.from_dense(arrays[0])
    assert mask.density == pytest.approx(arrays[0].mean(), abs=1e-12)
    assert mask.density + mask.sparsity == pytest.approx(1)


def test_crop_of_a_square_mask_needs_one_length():
    mask = AttentionMask.from_dense(random_mask(9, 9))
    assert mask.crop(4) == mask.crop(4, 4)
    assert mask.crop(9) == mask


# -------------------------------------------------------------------- algebra


@quick
@given(dense_masks(count=3))
def test_algebra_laws(arrays):
    a, b, c = map(AttentionMask.from_dense, arrays)
    full = AttentionMask.from_dense(np.ones_like(arrays[0]))
    assert np.array_equal((a & b).dense(), arrays[0] & arrays[1])
    assert np.array_equal((a | b).dense(), arrays[0] | arrays[1])
    assert np.array_equal((~a).dense(), ~arrays[0])
    assert padding_clear(~a)
    assert ~~a == a
    assert ~(a & b) == ~a | ~b
    assert a & (b | c) == (a & b) | (a & c)
    assert a & b == b & a
    assert a | (a & b) == a
    assert a & ~a == ~full
    assert a | ~a == full


@pytest.mark.parametrize(
    ("left", "right"),
    [((1, 1), (2, 3)), ((2, 1), (1, 3)), ((2, 3), (1, 1)), ((1, 3), (2, 3)), ((2, 1), (2, 3))],
)
def test_one_layer_or_head_serves_many(left, right):
    a, b = random_mask(*left, 5, 11, seed=1), random_mask(*right, 5, 11, seed=2)
    x, y = AttentionMask.from_dense(a), AttentionMask.from_dense(b)
    assert torch.equal((x & y).dense(), a & b)
    assert torch.equal((x | y).dense(), a | b)


@pytest.mark.parametrize("shape", [(2, 4, 5, 11), (3, 3, 5, 11), (2, 3, 1, 11), (2, 3, 5, 12)])
def test_other_shapes_do_not_combine(shape):
    mask = AttentionMask.from_dense(random_mask(2, 3, 5, 11))
    other = AttentionMask.from_dense(random_mask(*shape))
    with pytest.raises(ValueError, match=r"&: masks are .*\[2, 3, 5, 11\] and .*use crop"):
        mask & other
    with pytest.raises(ValueError, match=r"\|: masks are"):
        other | mask


# -------------------------------------------------------------------- provenance


def test_provenance_is_a_fresh_dict_and_follows_operations():
    mask = AttentionMask.from_dense(random_mask(4, 4), provenance={"pattern": "mine", "k": [1]})
    mask.provenance["k"].append(2)
    assert mask.provenance == {"pattern": "mine", "k": [1]}
    assert mask.crop(2).provenance == {
        "op": "crop",
        "q_len": 2,
        "kv_len": 2,
        "of": [{"pattern": "mine", "k": [1]}],
    }
    assert (mask & ~mask).provenance["op"] == "and"
    assert AttentionMask.from_dense(random_mask(4, 4)).provenance == {}


def test_provenance_of_a_mask_built_in_a_loop_stays_small():
    start = mask = AttentionMask.from_dense(random_mask(4, 4), provenance={"pattern": "mine"})
    for _ in range(2000):
        mask = ~mask
    assert mask == start
    assert len(str(mask.provenance)) < 5000


@pytest.mark.parametrize("value", [{"x": object()}, {"x": float("nan")}, ["x"], "star"])
def test_provenance_that_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="provenance must"):
        AttentionMask.from_dense(random_mask(4, 4), provenance=value)


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.float16])
def test_masks_of_numbers_are_refused_with_the_remedy(dtype):
    with pytest.raises(TypeError, match=r"must be bool.*mask\.bool\(\).*mask == 0"):
        AttentionMask.from_dense(torch.ones(4, 4, dtype=dtype))
    with pytest.raises(TypeError, match=r"must be bool"):
        AttentionMask.from_dense(torch.ones(4, 4, dtype=dtype).numpy())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: AttentionMask.from_dense([[True]]), TypeError, "got list"),
        (lambda m: AttentionMask.from_dense(random_mask(4)), ValueError, r"shape \[4\] but"),
        (lambda m: AttentionMask.from_dense(random_mask(1, 1, 1, 2, 2)), ValueError, "one of"),
        (lambda m: AttentionMask.from_dense(random_mask(0, 4, 4)), ValueError, "empty"),
        (lambda m: AttentionMask.from_packed(m.bits.astype(int), 9), TypeError, "uint8.*int64"),
        (lambda m: AttentionMask.from_packed(m.bits.tolist(), 9), TypeError, "uint8.*list"),
        (lambda m: AttentionMask.from_packed(m.bits, 17), ValueError, "2 bytes .* needs 3"),
        (lambda m: AttentionMask.from_packed(m.bits, 0), ValueError, "kv_len=0"),
        (lambda m: AttentionMask.from_packed(m.bits, 9.0), TypeError, "kv_len .*float"),
        (lambda m: AttentionMask.from_packed(m.bits | 128, 9), ValueError, "padding bits"),
        (lambda m: m.layer(2), IndexError, r"layer: index 2 but the mask has 2 layer"),
        (lambda m: m.layer(-3), IndexError, "index -3"),
        (lambda m: m.layer(True), TypeError, "bool"),
        (lambda m: m.head(3), IndexError, "head: index 3 but the mask has 3 head"),
        (lambda m: m.head(0.0), TypeError, "integer, got float"),
        (lambda m: m.crop(5), ValueError, "kv_len is needed.*not square"),
        (lambda m: m.crop(6, 9), ValueError, "crop: q_len=6 but must be from 1 to 5"),
        (lambda m: m.crop(5, 0), ValueError, "crop: kv_len=0"),
        (lambda m: m & m.dense(), TypeError, "expected an AttentionMask, got Tensor.*from_dense"),
        (lambda m: m | True, TypeError, "got bool"),
        (lambda m: m.to_block_mask(), ValueError, r"has 2 layers.*mask\.layer\(i\)"),
        (lambda m: m.layer(0).to_block_mask(0), ValueError, "block_size=0"),
        (lambda m: m.layer(0).to_block_mask((8, 8, 8)), ValueError, "one integer or two"),
        (lambda m: m.layer(0).to_block_mask(8.0), TypeError, "block_size .*float"),
        (lambda m: AttentionMask.stack_layers([]), ValueError, "empty"),
        (lambda m: AttentionMask.stack_layers([m, m.dense()]), TypeError, "from_dense"),
        (lambda m: AttentionMask.stack_layers([m, m.crop(4, 9)]), ValueError, "different lengths"),
        (
            lambda m: AttentionMask.stack_layers([m, AttentionMask.stack_heads([m, m])]),
            ValueError,
            "have 3 and 6 heads",
        ),
        (
            lambda m: AttentionMask.stack_heads([m, AttentionMask.stack_layers([m, m])]),
            ValueError,
            "have 2 and 4 layers",
        ),
        (lambda m: AttentionMask.from_mask_mod(lambda *a: a, 0, 1, 1), ValueError, "num_heads=0"),
        (lambda m: AttentionMask.from_mask_mod(lambda *a: a, 1, 1.5, 1), TypeError, "q_len"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call(AttentionMask.from_dense(random_mask(2, 3, 5, 9)))


def test_importing_masks_is_light():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import sparsebert.masks.mask, sparsebert.masks.patterns\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'transformers', 'triton', 'matplotlib'}, new\n"
        "assert 'torch.nn.attention.flex_attention' not in set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
