"""Patterns against the paper's table, independent constructions, and their own documentation."""

import inspect
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sparsebert.masks.bits
from sparsebert import patterns
from sparsebert.masks import AttentionMask

# Of tiny sequences: what warns, and what does not, is tested at the end.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* forbid nothing among"),
    pytest.mark.filterwarnings("ignore:.* is longer than seq_len"),
    pytest.mark.filterwarnings("ignore:.* less than one key a row"),
]
quick = settings(max_examples=40)
SEQUENCE = [name for name in patterns.PATTERNS if name != "neighborhood_2d"]
DRAWN = ("bigbird", "random")
PLAIN = [name for name in SEQUENCE if name not in DRAWN]


def grid(n):
    return torch.arange(n)[:, None], torch.arange(n)[None, :]


# -------------------------------------------------------------------- the paper's table


def paper_masks():
    """Dense one-line constructions at n = 128, which know nothing of the package."""
    i, j = grid(128)
    d = (i - j).abs()
    powers = torch.tensor([0, 1, 2, 4, 8, 16, 32, 64])
    return {
        "star": (i == 0) | (j == 0) | (d <= 1),
        "log_sparse": torch.isin(d, powers),
        "fixed": torch.block_diag(*[torch.ones(32, 32)] * 4).bool() | (j % 32 == 31),
        "longformer": (d <= 5) | (i < 2) | (j < 2),
        "strided": (d < 17) | (d % 17 == 0),
    }


@pytest.mark.parametrize("name", paper_masks())
def test_defaults_are_the_papers_masks(name):
    mask = patterns.build(name, 128)
    assert torch.equal(mask.dense()[0, 0], paper_masks()[name])


@pytest.mark.parametrize(
    ("name", "paper", "ours"),
    [
        ("star", 96.1, 96.13),
        ("log_sparse", 89.8, 89.83),
        ("fixed", 72.7, 72.66),
        ("longformer", 88.7, 88.62),
        ("bigbird", 93.2, 93.07),
        ("strided", 70.4, 70.75),
    ],
)
def test_sparsity_column_of_the_papers_table(name, paper, ours):
    percent = 100 * patterns.build(name, 128).sparsity
    assert round(percent, 2) == ours
    if name in ("star", "log_sparse", "fixed"):
        assert round(percent, 1) == paper
    # Longformer, BigBird and strided: no natural parameters give the paper's figure exactly.
    assert abs(percent - paper) < 0.4


def test_bigbird_is_its_band_and_the_stated_number_of_random_keys():
    i, j = grid(128)
    band = ((i - j).abs() <= 1) | (i < 2) | (j < 2)
    mask = patterns.bigbird(128).dense()[0, 0]
    extra = mask & ~band
    assert torch.equal(mask & band, band)
    assert (extra.sum(1)[2:] == 2).all()
    assert (extra.sum(1)[:2] == 0).all()


# -------------------------------------------------------------------- every pattern


# A second formula for each pattern, position by position, with other parameters.
RULES = {
    "dense": ({}, lambda i, j, n: True),
    "causal": ({}, lambda i, j, n: i - j >= 0),
    "sliding_window": ({"window": 3}, lambda i, j, n: -3 <= i - j <= 3),
    "dilated_window": (
        {"window": 2, "dilation": 3},
        lambda i, j, n: j in {i - 6, i - 3, i, i + 3, i + 6},
    ),
    "block_local": (
        {"block": 4},
        lambda i, j, n: any(i in b and j in b for b in (range(s, s + 4) for s in range(0, n, 4))),
    ),
    "strided": ({"stride": 4}, lambda i, j, n: -4 < i - j < 4 or (j - i) % 4 == 0),
    "fixed": ({"block": 5, "summary": 2}, lambda i, j, n: i // 5 == j // 5 or j % 5 in (3, 4)),
    "star": ({"window": 2}, lambda i, j, n: 0 in (i, j) or j in range(i - 2, i + 3)),
    "log_sparse": ({}, lambda i, j, n: i == j or math.log2(abs(i - j)).is_integer()),
    "longformer": (
        {"window": 1, "num_global": 3},
        lambda i, j, n: min(i, j) < 3 or j in (i - 1, i, i + 1),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_patterns_follow_their_formulas(name, n):
    parameters, rule = RULES[name]
    expected = torch.tensor([[bool(rule(i, j, n)) for j in range(n)] for i in range(n)])
    assert torch.equal(patterns.build(name, n, **parameters).dense()[0, 0], expected)


@pytest.mark.parametrize("name", SEQUENCE)
@pytest.mark.parametrize("n", [1, 2, 8, 65])
def test_defaults_work_at_every_length(name, n):
    mask = patterns.build(name, n)
    assert mask.shape == (1, 1, n, n)
    assert mask.dense().any(-1).all()  # no dead rows
    bare = mask.without_diagonal().dense()[0, 0]
    assert not bare.diagonal().any()


@quick
@given(st.sampled_from(PLAIN), st.integers(1, 90), st.integers(1, 90))
def test_a_shorter_sequence_is_the_top_left_part(name, n, m):
    n, m = max(n, m), min(n, m)
    assert patterns.build(name, n).crop(m) == patterns.build(name, m)


@pytest.mark.parametrize("chunk", [1, 300])
@pytest.mark.parametrize("name", PLAIN)
def test_row_chunks_do_not_show(monkeypatch, name, chunk):
    whole = patterns.build(name, 61)
    monkeypatch.setattr("sparsebert.masks.rules.CHUNK", chunk)
    assert patterns.build(name, 61) == whole


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_provenance_builds_the_mask_again(name):
    shape = {"height": 5, "width": 7} if name == "neighborhood_2d" else {"seq_len": 40}
    mask = patterns.PATTERNS[name](**shape)
    record = mask.provenance
    assert record.pop("pattern") == name
    assert set(record) == set(inspect.signature(patterns.PATTERNS[name]).parameters)
    assert patterns.build(name, **record) == mask


def test_the_registry_is_complete():
    public = {
        name
        for name, value in vars(patterns).items()
        if inspect.isfunction(value)
        and value.__module__ == patterns.__name__
        and not name.startswith("_")
    }
    assert set(patterns.PATTERNS) == public - {"build"}


def test_big_masks_need_little_memory():
    tracemalloc.start()
    try:
        mask = patterns.strided(4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask.bits.nbytes == 2 << 20
    assert peak < 64 << 20  # a dense bool mask and one int64 temporary would be 144 MB


# -------------------------------------------------------------------- random draws


def test_random_rows_have_the_stated_number_of_keys():
    for n, density, keep in [(100, 0.1, 10), (100, 0.9, 90), (7, 0.5, 4), (9, 0.01, 1), (5, 1, 5)]:
        mask = patterns.random(n, density=density, num_heads=2)
        assert (mask.dense().sum(-1) == keep).all(), (n, density)


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(0, 6), st.integers(0, 4), st.integers(0, 6), st.integers(0))
@example(n=12, window=5, num_global=0, num_random=6, seed=0)  # rows run out of keys in turn
def test_bigbird_adds_exactly_what_is_left_to_draw(n, window, num_global, num_random, seed):
    seed %= 2**64
    band = patterns.longformer(n, window, num_global)
    mask = patterns.bigbird(n, window, num_global, num_random, seed, num_heads=2)
    left = (~band).dense()[0].sum(-1)
    extra = (mask & ~band).dense()[0].sum(-1)
    assert (band & mask) == AttentionMask.stack_heads([band, band])
    assert torch.equal(extra, left.clamp(max=num_random).expand(2, n))


@pytest.mark.parametrize("name", DRAWN)
def test_heads_and_seeds_differ_and_repeat(name):
    mask = patterns.build(name, 200, seed=5, num_heads=3)
    assert mask.shape == (1, 3, 200, 200)
    assert patterns.build(name, 200, seed=5, num_heads=3) == mask
    assert patterns.build(name, 200, seed=5, num_heads=2) == AttentionMask.stack_heads(
        [mask.head(0), mask.head(1)]
    )
    different = {mask.head(h) for h in range(3)} | {patterns.build(name, 200, seed=6)}
    assert len(different) == 4


def philox4x64(key, block):
    """The four words of block number `block` (a 256-bit counter), from the published algorithm."""
    word = (1 << 64) - 1
    c = [(block >> (64 * i)) & word for i in range(4)]
    k = [key & word, key >> 64]
    for _ in range(10):
        a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(b >> 64) ^ c[1] ^ k[0], b & word, (a >> 64) ^ c[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B97F4A7C15) & word, (k[1] + 0xBB67AE8584CAA73B) & word]
    return c


def test_the_draw_is_the_documented_one_in_plain_python():
    n, keep, seed, head = 23, 5, 2**63 + 9, 2
    blocks = range(1, 1 + (n * keep + 3) // 4)  # NumPy counts up before it draws
    words = (word for at in blocks for word in philox4x64(seed, (head << 192) + at))
    rows = [set() for _ in range(n)]
    for j in range(n - keep, n):
        for row in rows:
            t = ((next(words) >> 32) * (j + 1)) >> 32
            row.add(j if t in row else t)
    expected = torch.tensor([[j in row for j in range(n)] for row in rows])
    mask = patterns.random(n, density=keep / n, seed=seed, num_heads=3)
    assert torch.equal(mask.dense()[0, head], expected)


def test_the_draws_do_not_change_between_versions():
    assert (
        patterns.random(50, density=0.2, seed=1, num_heads=2).fingerprint
        == "f5e77ba69ec8aa89558e619fb739bd06567e93f525a37c200cc19c7002def14e"
    )
    assert (
        patterns.random(50, density=0.8, seed=1, num_heads=2).fingerprint
        == "dae964385377eca13d34afeaf1dcad25bb933c1b2d3e2a2bb6f9c33da355a323"
    )
    assert (
        patterns.bigbird(50, seed=1, num_heads=2).fingerprint
        == "36c00edc34300dae4f4a7ead0e2f731cfd9e982227950847055ad1011b19492d"
    )


@pytest.mark.parametrize(("density", "share"), [(0.1, 0.1), (0.8, 0.8)])
def test_all_keys_are_equally_likely(density, share):
    counts = patterns.random(50, density=density, seed=3, num_heads=80).dense()[0].sum((0, 1))
    rows = 80 * 50
    sigma = math.sqrt(rows * share * (1 - share))
    # Five sigma for each of 50 keys: a right sampler fails for one seed in 35,000.
    assert (counts - rows * share).abs().max() < 5 * sigma


def test_bigbird_draws_all_that_is_left_equally_often():
    n, heads = 40, 400
    counts = patterns.bigbird(n, seed=4, num_heads=heads).dense()[0].sum(0)[20]
    band = patterns.longformer(n, 1, 2).dense()[0, 0, 20]
    share = 2 / int((~band).sum())
    sigma = math.sqrt(heads * share * (1 - share))
    assert (counts[band] == heads).all()
    assert (counts[~band] - heads * share).abs().max() < 5 * sigma


# -------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("height", "width", "kernel", "special"),
    [(7, 9, 3, 0), (5, 5, 5, 1), (8, 6, 1, 2), (1, 9, 3, 0), (3, 4, 7, 1), (1, 1, 7, 0)],
)
def test_neighborhood_is_the_window_around_a_clamped_centre(height, width, kernel, special):
    expected = torch.zeros(special + height * width, special + height * width, dtype=torch.bool)
    expected[:special] = True
    expected[:, :special] = True

    def neighbours(x, size):
        if kernel >= size:
            return range(size)
        centre = min(max(x, kernel // 2), size - 1 - kernel // 2)
        return range(centre - kernel // 2, centre + kernel // 2 + 1)

    for r in range(height):
        for c in range(width):
            for r2 in neighbours(r, height):
                for c2 in neighbours(c, width):
                    expected[special + r * width + c, special + r2 * width + c2] = True
    mask = patterns.neighborhood_2d(height, width, kernel_size=kernel, num_special=special)
    assert torch.equal(mask.dense()[0, 0], expected)
    inner = min(kernel, height) * min(kernel, width)
    assert (mask.dense()[0, 0, special:].sum(1) == inner + special).all()


def test_neighborhood_is_built_by_height_and_width():
    mask = patterns.build("neighborhood_2d", 65, height=8, width=8, num_special=1)
    assert mask == patterns.build("neighborhood_2d", height=8, width=8, num_special=1)
    with pytest.raises(ValueError, match=r"seq_len=64 but num_special \+ height \* width = 65"):
        patterns.build("neighborhood_2d", 64, height=8, width=8, num_special=1)
    with pytest.raises(TypeError, match=r"neighborhood_2d: .*'height'.*are height, wid"):
        patterns.build("neighborhood_2d", 64)


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: patterns.causal(0), ValueError, "causal: seq_len=0 but must be from 1"),
        (lambda: patterns.causal(2**31), ValueError, "seq_len=2147483648 but"),
        (lambda: patterns.dense(8.0), TypeError, "dense: seq_len must be an integer, got float"),
        (lambda: patterns.star(True), TypeError, "star: seq_len must be an integer, got bool"),
        (lambda: patterns.star("8"), TypeError, "got str"),
        (lambda: patterns.star(8, window=-1), ValueError, "star: window=-1 but"),
        (lambda: patterns.sliding_window(8, -1), ValueError, "sliding_window: window=-1"),
        (lambda: patterns.dilated_window(8, dilation=0), ValueError, "dilation=0"),
        (lambda: patterns.block_local(8, block=0), ValueError, "block_local: block=0"),
        (lambda: patterns.strided(8, stride=0), ValueError, "stride=0"),
        (lambda: patterns.fixed(8, block=4, summary=5), ValueError, "summary=5 .* block=4"),
        (lambda: patterns.fixed(8, summary=0), ValueError, "fixed: summary=0"),
        (lambda: patterns.longformer(8, num_global=-1), ValueError, "num_global=-1"),
        (lambda: patterns.bigbird(8, num_random=1.5), TypeError, "num_random .*float"),
        (lambda: patterns.bigbird(8, window=-1), ValueError, "bigbird: window=-1"),
        (lambda: patterns.bigbird(8, seed=-1), ValueError, "bigbird: seed=-1"),
        (lambda: patterns.random(8, seed=2**64), ValueError, "random: seed="),
        (lambda: patterns.random(8, num_heads=0), ValueError, "num_heads=0"),
        (lambda: patterns.random(8, density=0), ValueError, "density=0.0 but must be above 0"),
        (lambda: patterns.random(8, density=1.5), ValueError, "density=1.5"),
        (lambda: patterns.random(8, density=math.nan), ValueError, "density=nan"),
        (lambda: patterns.random(8, density="0.1"), TypeError, "density must be a number"),
        (lambda: patterns.neighborhood_2d(8, 8, 4), ValueError, "kernel_size=4 .* odd"),
        (lambda: patterns.neighborhood_2d(0, 8), ValueError, "height=0"),
        (lambda: patterns.neighborhood_2d(8, 8, 3, -1), ValueError, "num_special=-1"),
        (lambda: patterns.build("sparkle", 8), ValueError, "no pattern 'sparkle'.*longformer"),
        (lambda: patterns.build("star"), TypeError, "star: missing .*'seq_len'"),
        (
            lambda: patterns.build("star", 8, stride=2),
            TypeError,
            "'stride'; its parameters are se",
        ),
    ],
)
def test_errors_name_pattern_parameter_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", SEQUENCE)
def test_very_large_parameters_are_no_trouble(name):
    counts = [
        parameter
        for parameter in inspect.signature(patterns.PATTERNS[name]).parameters
        if parameter not in ("seq_len", "density", "seed", "num_heads", "summary")
    ]
    mask = patterns.build(name, 9, **dict.fromkeys(counts, 2**31 - 1))
    wide = patterns.build(name, 9, **dict.fromkeys(counts, 1000))
    if name != "fixed":  # its summary columns sit at the end of a block
        assert mask == wide


def test_numpy_integers_are_integers():
    assert patterns.star(np.int64(9), window=np.int32(2)) == patterns.star(9, window=2)


# -------------------------------------------------------------------- parameters out of proportion

COVERING = [
    ("longformer", {"num_global": 65}, "window=5, num_global=65 forbid nothing among 64 tokens"),
    ("longformer", {"num_global": 64}, ".*num_global=64"),
    ("longformer", {"window": 61}, "window=61"),
    ("sliding_window", {"window": 100}, r"window=100 .* patterns\.dense\(64\)"),
    ("dilated_window", {"window": 64, "dilation": 1}, "window=64"),
    ("block_local", {"block": 64}, "block=64"),
    ("strided", {"stride": 63}, "stride=63"),
    ("strided", {"stride": 1}, "stride=1"),
    ("fixed", {"block": 80}, "block=80"),
    ("fixed", {"block": 8, "summary": 8}, "block=8, summary=8"),
    ("star", {"window": 62}, "window=62"),
    ("bigbird", {"window": 70}, "window=70"),
    ("bigbird", {"num_global": 64}, ".*num_global=64"),
    ("bigbird", {"num_random": 61}, ".*num_random=61"),
    ("random", {"density": 0.999}, "density=0.999"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), COVERING)
def test_parameters_that_leave_nothing_to_forbid_warn(name, parameters, message):
    with pytest.warns(UserWarning, match=f"^{name}: {message}") as caught:
        mask = patterns.PATTERNS[name](64, **parameters)
    assert mask.density == 1
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_parameters_in_proportion_do_not_warn(name):
    if name == "neighborhood_2d":
        patterns.neighborhood_2d(8, 20, kernel_size=9)
        return
    patterns.PATTERNS[name](64)
    patterns.PATTERNS[name](1)
    assert patterns.random(64, density=1.0).density == 1
    widest = {
        "longformer": {"window": 60}, "sliding_window": {"window": 62},
        "dilated_window": {"window": 64, "dilation": 2}, "block_local": {"block": 63},
        "strided": {"stride": 62}, "fixed": {"block": 32, "summary": 31}, "star": {"window": 61},
        "bigbird": {"window": 5, "num_random": 50}, "random": {"density": 0.01},
    }  # fmt: skip
    assert patterns.build(name, 64, **widest.get(name, {})).density < 1 or name == "dense"


def test_other_parameters_that_are_not_what_they_seem_warn():
    with pytest.warns(UserWarning, match="neighborhood_2d: .*kernel_size=9, .* among 49"):
        assert patterns.neighborhood_2d(7, 7, kernel_size=9).density == 1
    with pytest.warns(UserWarning, match="dilated_window: dilation=64 .* its diagonal alone"):
        assert patterns.dilated_window(64, dilation=64) == patterns.sliding_window(64, window=0)
    with pytest.warns(UserWarning, match=r"random: density=0.001 .* one, a density of 0\.016"):
        assert patterns.random(64, density=0.001).density == 1 / 64


def test_masks_too_large_to_build_are_refused_with_the_figure(monkeypatch):
    """Before memory is asked for: 5 GB of bits took a machine down without a word."""
    for name in set(patterns.PATTERNS) - {"neighborhood_2d"}:
        with pytest.raises(ValueError, match=rf"^{name}: .* takes 5\.0 GB of bits .*=5000000000 "):
            patterns.build(name, 200_000)
    with pytest.raises(ValueError, match=r"^neighborhood_2d: .* takes 5\.0 GB of bits"):
        patterns.neighborhood_2d(400, 500)
    with pytest.raises(ValueError, match=r"^bigbird: a mask of 12 x 50000 x 50000 takes 3\.8 GB"):
        patterns.bigbird(50_000, num_heads=12)
    monkeypatch.setattr(sparsebert.masks.bits, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"^from_mask_mod: a mask of 2 x 64 x 64 takes"):
        AttentionMask.from_mask_mod(lambda b, h, q, k: q >= k, 2, 64, 64)
    assert patterns.star(80).kv_len == 80
