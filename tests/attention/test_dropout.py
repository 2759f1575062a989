"""The dropout hash: known answers, independence of how it is asked, and statistics."""

import numpy as np
import pytest
import torch

from sparsebert import dropout

M32 = 0xFFFFFFFF


def philox_2x32(c0, c1, key, rounds):
    """Straight from Salmon et al. (SC 2011), on Python integers."""
    for _ in range(rounds):
        product = c0 * 0xD256D193
        c0, c1 = (product >> 32) ^ key ^ c1, product & M32
        key = (key + 0x9E3779B9) & M32
    return c0, c1


def philox_4x32(counter, key, rounds):
    for _ in range(rounds):
        p0, p1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (p1 >> 32) ^ counter[1] ^ key[0],
            p1 & M32,
            (p0 >> 32) ^ counter[3] ^ key[1],
            p0 & M32,
        ]
        key = [(key[0] + 0x9E3779B9) & M32, (key[1] + 0xBB67AE85) & M32]
    return counter


def test_the_integer_versions_give_the_published_vectors():
    # kat_vectors of the Random123 distribution.
    assert philox_2x32(0, 0, 0, 10) == (0xFF1DAE59, 0x6CD10DF2)
    assert philox_2x32(0x243F6A88, 0x85A308D3, 0x13198A2E, 10) == (0xDD7CE038, 0xF62A4C12)
    assert philox_4x32([0] * 4, [0, 0], 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_keep_mask_is_the_hash_element_by_element():
    seed = torch.tensor([0x0123456789ABCDEF], dtype=torch.int64)
    keep = dropout.keep_mask(2, 3, 5, 7, 0.4, seed=seed)
    threshold = dropout.drop_threshold(0.4)
    for b in range(2):
        for h in range(3):
            key = philox_4x32([b, h, 0, 0], [0x89ABCDEF, 0x01234567], dropout.ROUNDS_PER_HEAD)[0]
            for i in range(5):
                for j in range(7):
                    bits = philox_2x32(i, j, key, dropout.ROUNDS_PER_ELEMENT)[0]
                    assert bool(keep[b, h, i, j]) == (bits >= threshold)


def test_gathered_positions_see_the_same_draw(monkeypatch):
    seed = torch.tensor([42])
    keep = dropout.keep_mask(1, 1, 300, 200, 0.3, seed=seed)[0, 0]
    rows, cols = torch.randperm(300)[:50], torch.randperm(200)[:60]
    keys = dropout.head_keys(seed, 1, 1)[0, 0]
    threshold = dropout.drop_threshold(0.3)
    whole = dropout.keep_bits(keys, rows[:, None], cols[None], threshold)
    assert whole.equal(keep[rows][:, cols])
    monkeypatch.setattr(dropout, "_PIECE", 7)  # the size of the pieces must not matter
    assert dropout.keep_bits(keys, rows[:, None], cols[None], threshold).equal(whole)


def test_seed_comes_from_the_torch_generator():
    torch.manual_seed(7)
    first = dropout.keep_mask(1, 2, 32, 32, 0.5)
    second = dropout.keep_mask(1, 2, 32, 32, 0.5)
    torch.manual_seed(7)
    assert dropout.keep_mask(1, 2, 32, 32, 0.5).equal(first)
    assert not second.equal(first)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_statistics(p):
    """Rates and correlations within five standard deviations of independent draws."""
    keep = dropout.keep_mask(4, 6, 128, 128, p, seed=torch.tensor([1])).double()
    centred = (keep - (1 - p)) / np.sqrt(p * (1 - p))
    count = keep.numel()
    assert abs(centred.sum()) < 5 * np.sqrt(count)
    for dim in range(4):  # neighbours in batch, head, query and key
        size = keep.shape[dim] - 1
        product = centred.narrow(dim, 0, size) * centred.narrow(dim, 1, size)
        assert abs(product.sum()) < 5 * np.sqrt(product.numel())
    assert abs((centred * centred.transpose(2, 3)).triu(1).sum()) < 5 * np.sqrt(count / 2)
    row_means = centred.mean(-1) * np.sqrt(128)
    assert row_means.abs().max() < 6.5  # the largest of 3072 normal values


def test_zero_and_tiny_probabilities():
    assert dropout.keep_mask(1, 1, 64, 64, 0.0, seed=torch.tensor([3])).all()
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\)"):
        dropout.keep_mask(1, 1, 2, 2, 1.0)
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\)"):
        dropout.keep_mask(1, 1, 2, 2, -0.1)


def test_thresholds_are_shares_of_all_hash_values():
    """Rounded to the nearest; never all of them, so that a probability below 1 keeps some."""
    shares = {0.0: 0, 2.0**-33: 0, 2.0**-32: 1, 0.25: 2**30, 0.5: 2**31, 0.75: 3 * 2**30}
    for p, count in shares.items():
        assert dropout.drop_threshold(p) == count
    assert dropout.drop_threshold(1.0 - 2.0**-32) == 2**32 - 1
    assert dropout.drop_threshold(1.0 - 2.0**-40) == 2**32 - 1


def test_seeds():
    """int64 [1], on the device asked for, of 62 bits: no two draws are alike."""
    torch.manual_seed(0)
    seeds = [dropout.draw_seed() for _ in range(64)]
    assert all(seed.shape == (1,) and seed.dtype == torch.int64 for seed in seeds)
    values = [int(seed) for seed in seeds]
    assert len(set(values)) == 64 and 2**61 < max(values) < 2**62 and min(values) >= 0
    assert dropout.draw_seed("meta").device.type == "meta"


def test_every_batch_and_head_has_a_key_of_its_own():
    """Of 32 bits, by all 64 bits of the seed."""
    keys = dropout.head_keys(torch.tensor([5]), 8, 16)
    assert keys.shape == (8, 16) and keys.unique().numel() == 8 * 16
    assert keys.min() >= 0 and 2**31 < keys.max() < 2**32
    for bit in (0, 31, 32, 61):
        other = dropout.head_keys(torch.tensor([5 ^ (1 << bit)]), 8, 16)
        assert not (other == keys).any()


def test_keep_masks_are_on_the_device_of_the_call():
    seed = torch.tensor([1])
    assert dropout.keep_mask(1, 2, 4, 5, 0.5, seed=seed, device="meta").device.type == "meta"
    assert dropout.keep_mask(1, 2, 4, 5, 0.5, device="meta").shape == (1, 2, 4, 5)
