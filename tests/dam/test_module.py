"""The DifferentiableAttentionMask as a module: its defaults, devices, state, copies, and repr."""

from __future__ import annotations

import pickle

import pytest
import torch

import sparsebert as sb


def test_defaults() -> None:
    """As documented: free symmetric positions, hard samples, even chances, temperature 1."""
    dam = sb.DifferentiableAttentionMask(2, 3, 8)
    assert dam.settings() == {
        "num_layers": 2,
        "num_heads": 3,
        "seq_len": 8,
        "structure": "full",
        "symmetric": True,
        "block_size": None,
        "own_tokens": [],
        "hard": True,
        "noise": True,
        "sampling": "gumbel",
        "density": 1.0,
        "scope": "head",
    }
    assert dam.alpha.shape == (2, 3, 8 * 9 // 2)
    assert dam.temperature.item() == 1.0
    assert 0.0 < dam.alpha.std() < 0.01 and dam.alpha.mean().abs() < 1e-3
    assert sb.DifferentiableAttentionMask(1, 1, 4, init_std=0.0).alpha.eq(0).all()
    first, second = (sb.DifferentiableAttentionMask(1, 1, 8) for _ in range(2))
    assert not torch.equal(first(), second())  # a stream of its own without a seed


def test_settings_rebuild_the_module() -> None:
    dam = sb.DifferentiableAttentionMask(
        1, 2, 9, "block", block_size=4, symmetric=False, hard=False, noise=False, seed=1
    )
    twin = sb.DifferentiableAttentionMask(**dam.settings(), seed=1)
    assert twin.settings() == dam.settings() and twin.settings()["block_size"] == 4
    twin.load_state_dict(dam.state_dict())
    assert torch.equal(twin(), dam())
    assert repr(dam) == (
        "DifferentiableAttentionMask(num_layers=1, num_heads=2, seq_len=9, structure='block', "
        "symmetric=False, block_size=4, own_tokens=[], hard=False, noise=False, "
        "sampling='gumbel', density=1.0, scope='head', parameters=18)"
    )


def test_state() -> None:
    """Saved is what a resumed training needs, and not what the settings say."""
    dam = sb.DifferentiableAttentionMask(1, 2, 8, seed=2**62, temperature=0.5)
    dam(), dam()
    state = dam.state_dict()
    assert set(state) == {"alpha", "temperature", "noise_seed", "draws"}
    assert state["noise_seed"].item() == 2**62 and state["draws"].item() == 2
    assert state["temperature"].item() == 0.5


def test_neighbouring_draws_have_nothing_in_common() -> None:
    """No draw of one seed's stream comes again, in it or in the next seed's."""
    drawn = []
    for seed in (1, 2):
        dam = sb.DifferentiableAttentionMask(1, 1, 32, seed=seed, hard=False, init_std=0.0)
        drawn += [dam().detach() for _ in range(4)]
    for i, draw in enumerate(drawn):
        assert not any(torch.equal(draw, other) for other in drawn[:i])


def test_copies_after_a_forward_pass() -> None:
    """A pickle holds the parameters and the place in the stream, not the last sample's graph."""
    dam = sb.DifferentiableAttentionMask(1, 2, 8, seed=3)
    dam()
    twin = pickle.loads(pickle.dumps(dam))
    assert torch.equal(twin(), dam())
    with pytest.raises(ValueError, match="none was drawn yet"):
        pickle.loads(pickle.dumps(dam)).penalty("l1")


@pytest.mark.parametrize("structure", ["full", "toeplitz", "block"])
def test_everything_is_on_the_device(structure: str) -> None:
    block = {"block_size": 2} if structure == "block" else {}
    dam = sb.DifferentiableAttentionMask(
        1, 2, 8, structure, symmetric=False, device="meta", dtype=torch.float64, **block
    )
    made = [*dam.parameters(), *dam.buffers(), dam.probabilities(5), dam.sample(), dam.eval()()]
    made += [dam.penalty(kind) for kind in ("expected_l1", "executed_area")]
    assert len(made) == 11 and {x.device.type for x in made} == {"meta"}
    assert dam.probabilities().dtype == dam.sample().dtype == torch.float64


def test_lengths() -> None:
    dam = sb.DifferentiableAttentionMask(1, 2, 8)
    assert dam.probabilities(8).shape == (1, 2, 8, 8)
    with pytest.raises(ValueError, match="length=0"):
        dam.sample(0)
    with pytest.raises(TypeError, match="length must be an integer"):
        dam(2.5)


def test_temperature() -> None:
    """Of the samples alone, anywhere above 0; a low one makes them nearly hard."""
    dam = sb.DifferentiableAttentionMask(1, 1, 16, hard=False, seed=0)
    assert ((dam() > 0.1) & (dam() < 0.9)).any()
    before = dam.probabilities()
    dam.set_temperature(1e-3)
    assert torch.equal(dam.probabilities(), before)
    sample = dam()
    assert ((sample < 0.1) | (sample > 0.9)).float().mean() > 0.95
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            dam.set_temperature(wrong)


@pytest.mark.parametrize("option", ["init_probability", "init_std"])
@pytest.mark.parametrize("value", [0.0, 1.0, float("inf"), float("nan")])
def test_initial_values_are_checked(option: str, value: float) -> None:
    allowed = option == "init_std" and value in (0.0, 1.0)
    if allowed:
        sb.DifferentiableAttentionMask(1, 1, 4, init_std=value)
        return
    with pytest.raises(ValueError, match=f"{option} must be"):
        sb.DifferentiableAttentionMask(1, 1, 4, **{option: value})


def test_smallest_and_largest_settings() -> None:
    """One position, one block, one row a tile: the ends of every range are allowed."""
    dam = sb.DifferentiableAttentionMask(1, 1, 1, seed=2**63 - 1)
    assert dam().shape == (1, 1, 1, 1) and dam.binarize().dense().all()
    whole = sb.DifferentiableAttentionMask(1, 1, 6, "block", block_size=6, seed=0)
    assert whole.alpha.numel() == 1 and whole.probabilities().unique().numel() == 1
    with pytest.raises(ValueError, match="block_size=7"):
        sb.DifferentiableAttentionMask(1, 1, 6, "block", block_size=7)
    for name, value in (("num_layers", 0), ("num_heads", 0), ("seq_len", 0), ("seed", 2**63)):
        sizes = {"num_layers": 1, "num_heads": 1, "seq_len": 4, name: value}
        with pytest.raises(ValueError, match=f"{name}={value}"):
            sb.DifferentiableAttentionMask(**sizes)


def test_penalty_of_a_shorter_sample_is_its_own_mean() -> None:
    dam = sb.DifferentiableAttentionMask(2, 3, 8)
    sample = dam.sample(4)
    mean = dam.penalty("l1", sample=sample, reduction="mean")
    torch.testing.assert_close(mean, sample.mean())
    dam()
    kept = dam.penalty("l1").item()
    assert dam.penalty("l1", reduction="mean").item() == pytest.approx(kept / (2 * 3 * 64))
    assert dam.penalty("executed_area").item() == pytest.approx(
        dam.penalty("executed_area", tile_rows=16).item()
    )


def test_binarized_masks_say_how_they_were_made() -> None:
    dam = sb.DifferentiableAttentionMask(1, 2, 8, seed=0)
    plain = dam.binarize().provenance
    assert plain == {
        "dam": dam.settings(),
        "threshold": 0.5,
        "sparsity": None,
        "scope": "head",
        "without_diagonal": False,
        "keep_tokens": [],
        "allow_empty_rows": False,
    }
    chosen = dam.binarize(
        sparsity=0.25,
        scope="global",
        without_diagonal=True,
        keep_tokens=(-1, 0),
        allow_empty_rows=True,
    ).provenance
    assert chosen == plain | {
        "threshold": None,
        "sparsity": 0.25,
        "scope": "global",
        "without_diagonal": True,
        "keep_tokens": [7, 0],
        "allow_empty_rows": True,
    }


def test_binarize_with_the_diagonal_closed_and_tokens_kept() -> None:
    """Threshold mode: what is above it, the tokens' rows and columns, never the diagonal."""
    dam = sb.DifferentiableAttentionMask(1, 2, 6, symmetric=False, init_std=1.0)
    p = dam.probabilities().detach()
    got = dam.binarize(0.6, without_diagonal=True, keep_tokens=[2], allow_empty_rows=True).dense()
    expected = p > 0.6
    expected[..., 2, :] = expected[..., :, 2] = True
    expected &= ~torch.eye(6, dtype=torch.bool)
    assert torch.equal(got, expected)


def test_budget_counts_what_must_stay() -> None:
    """A sparsity that leaves exactly the likeliest position of each row leaves just those."""
    dam = sb.DifferentiableAttentionMask(1, 2, 8, symmetric=False, init_std=1.0)
    p = dam.probabilities().detach()
    best = p == p.amax(-1, keepdim=True)
    assert torch.equal(dam.binarize(sparsity=1 - 8 / 64).dense(), best)
    free = dam.binarize(sparsity=1 - 8 / 64, allow_empty_rows=True).dense()
    top = p.flatten(-2).topk(8).values[..., -1, None, None]
    assert torch.equal(free, p >= top)


def test_equal_probabilities_are_kept_in_the_order_of_their_positions() -> None:
    """So that a mask comes out the same on every machine."""
    dam = sb.DifferentiableAttentionMask(1, 1, 32, symmetric=False, init_std=0.0)
    kept = dam.binarize(sparsity=0.75, allow_empty_rows=True).dense()[0, 0]
    assert torch.equal(kept, (torch.arange(32) < 8)[:, None].expand(32, 32))
