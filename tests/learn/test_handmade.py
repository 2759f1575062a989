"""Hand-made masks of an asked sparsity."""

import pytest
import torch

from sparsebert.learn.handmade import FAMILIES, pattern_at_sparsity


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("n", "sparsity"), [(100, 0.7), (128, 0.9)])
def test_patterns_are_as_dense_as_the_sparsity_allows(name: str, n: int, sparsity: float) -> None:
    mask = pattern_at_sparsity(name, n, sparsity, num_heads=2)
    assert mask.sparsity >= sparsity - 1e-9
    if name != "log_sparse":  # has only so many distances
        # A step of the parameter adds at most a key on each side of every row.
        assert mask.density > 1.0 - sparsity - 2.0 / n
    assert mask.dense().any(dim=-1).all()
    assert mask.provenance["pattern"] == name
    assert mask == pattern_at_sparsity(name, n, sparsity, num_heads=2)


def test_composed_patterns_are_what_they_say() -> None:
    i, j = torch.arange(128)[:, None], torch.arange(128)[None, :]
    mask = pattern_at_sparsity("strided", 128, 0.9)
    stride, window = mask.provenance["stride"], mask.provenance["window"]
    assert mask.dense()[0, 0].equal(((i - j) % stride == 0) | ((i - j).abs() <= window))
    mask = pattern_at_sparsity("fixed", 128, 0.9)
    block, period = mask.provenance["block"], mask.provenance["summary_every"]
    assert mask.dense()[0, 0].equal((i // block == j // block) | (j % period == period - 1))
    mask = pattern_at_sparsity("log_sparse", 128, 0.95)
    distances = {0, *(2**k for k in range(8) if 2**k <= mask.provenance["longest"])}
    assert {int(d) for d in (i - j).abs()[mask.dense()[0, 0]]} == distances


def test_heads_draw_random_keys_of_their_own() -> None:
    for name in ("bigbird", "random"):
        mask = pattern_at_sparsity(name, 64, 0.8, num_heads=3)
        assert mask.shape == (1, 3, 64, 64)
        assert mask.head(0) != mask.head(1)
        assert mask != pattern_at_sparsity(name, 64, 0.8, num_heads=3, seed=1)


def test_patterns_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"name must be one of sliding_window, .*, got 'moon'"):
        pattern_at_sparsity("moon", 64, 0.9)
    with pytest.raises(ValueError, match=r"no longformer mask of seq_len=64 is as sparse as 0.99"):
        pattern_at_sparsity("longformer", 64, 0.99)
    with pytest.raises(ValueError, match=r"sparsity must be in \(0, 1\), got 1.0"):
        pattern_at_sparsity("star", 64, 1.0)
