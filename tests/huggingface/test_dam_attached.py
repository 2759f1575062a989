"""A DAM in HuggingFace models: what it computes, what it learns, and the way to a sparse model."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import sparsebert as sb
from sparsebert.dam.search import MaskSearch
from sparsebert.testing import root_mean_square, route_bound
from tests.huggingface.models import (
    MASK_LENGTH,
    MODELS,
    Run,
    assert_equal_in_fp64,
    build,
    inputs,
    judged,
    num_modules,
    random_masks,
)


def with_dam(name: str, **more: Any) -> tuple[Any, sb.DifferentiableAttentionMask]:
    """A model and a DAM for each of its modules and heads, attached, in evaluation mode."""
    model = build(name)
    dam = sb.DifferentiableAttentionMask(
        num_modules(model), model.config.num_attention_heads, MASK_LENGTH,
        symmetric=False, init_std=1.0, seed=1, **more,
    )  # fmt: skip
    return sb.attach_dam(model, dam), dam


@pytest.mark.parametrize("name", MODELS)
def test_hard_mask_is_eager_attention_under_it(name: str) -> None:
    """Hidden states, logits and every gradient, padding included, as test_attention."""
    model, dam = with_dam(name)
    masks = random_masks(model)
    with torch.no_grad():
        dam.alpha.copy_(torch.where(masks, 2.0, -2.0).flatten(-2))
    judge = judged(build(name), masks)
    arguments, real = inputs(name)
    exact = Run.of(copy.deepcopy(judge).double(), arguments, real).parts()
    rounded = Run.of(judge, arguments, real).parts()
    found = Run.of(model, arguments, real)
    for key in [key for key in found.gradients if "sparsebert_dam" in key]:
        del found.gradients[key]
    for what, result in found.parts().items():
        bound = route_bound(exact[what], [rounded[what]], torch.float32)
        assert root_mean_square(result - exact[what]) <= bound, what


@pytest.mark.parametrize("name", MODELS)
def test_search_to_sparse_model(name: str, tmp_path: Path) -> None:
    """search -> binarize -> save -> load -> sparsify equals the DAM's own hard mask, dense."""
    model, dam = with_dam(name)
    with torch.no_grad():  # rows of a mask of our own must not be empty for the comparison
        dam.alpha[..., :: MASK_LENGTH + 1] = 3.0
    model.double()
    arguments, real = inputs(name)
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    with torch.no_grad():
        dense = model(**arguments)
    before = {key for key in model.state_dict() if "sparsebert_dam" not in key}
    dam.binarize().save(tmp_path / "mask.safetensors")
    sb.sparsify(sb.detach_dam(model), sb.AttentionMask.load(tmp_path / "mask.safetensors"))
    assert set(model.state_dict()) == before
    with torch.no_grad():
        sparse = model(**arguments)
    of_real = (slice(None),) if sparse.logits.dim() == 2 else (real,)
    assert_equal_in_fp64(sparse.logits[of_real], dense.logits[of_real])


def test_detach_restores_the_model() -> None:
    model = build("bert")
    arguments, _ = inputs("bert")
    config, names, before = model.config, set(model.state_dict()), model(**arguments).logits
    other = transformers.BertForMaskedLM(config)
    sb.attach_dam(model, sb.DifferentiableAttentionMask(1, 4, MASK_LENGTH, init_std=2.0))
    assert not torch.equal(model(**arguments).logits, before)
    assert other.config._attn_implementation == config._attn_implementation == "sdpa"
    assert "bert.sparsebert_dam.alpha" in model.state_dict()
    sb.detach_dam(model)
    assert model.config is config and set(model.state_dict()) == names
    assert not model.bert._forward_pre_hooks
    assert torch.equal(model(**arguments).logits, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_draw_for_each_forward(checkpointing: bool) -> None:
    """All layers share it, a recomputation sees it again, the next forward has another."""
    model = build("bert")
    dam = sb.DifferentiableAttentionMask(1, 4, MASK_LENGTH, seed=3)
    sb.attach_dam(model, dam)
    arguments, _ = inputs("bert")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if checkpointing:
        model.bert.encoder.layer[1].gradient_checkpointing = True
        model.bert.encoder.layer[1]._gradient_checkpointing_func = functools.partial(
            torch.utils.checkpoint.checkpoint, use_reentrant=False
        )
    first = model(**arguments)
    first.loss.backward()
    got = dam.alpha.grad.clone()
    assert dam.draws.item() == 1

    # the same by hand: the draw as a parameter of a model that does not draw
    twin = sb.DifferentiableAttentionMask(1, 4, MASK_LENGTH, seed=3)
    twin.alpha = dam.alpha
    sample = twin.draw()
    fixed = sb.DifferentiableAttentionMask(1, 4, MASK_LENGTH, hard=False, noise=False)
    values = sample.detach().clone().requires_grad_()
    fixed.draw = lambda: values  # type: ignore[method-assign]
    reference = sb.attach_dam(sb.detach_dam(model), fixed)
    second = reference(**arguments)
    assert torch.equal(first.loss, second.loss)
    second.loss.backward()
    (expected,) = torch.autograd.grad(sample, dam.alpha, values.grad)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8 * got.abs().max().item())


def test_copies() -> None:
    """A copy of a model that is being trained has a DAM of its own and goes on alike."""
    model, dam = with_dam("bert")
    arguments, _ = inputs("bert")
    model.train()
    model(**arguments).loss.backward()
    twin = copy.deepcopy(model)
    theirs = twin.bert.sparsebert_dam
    assert theirs is not dam and twin.bert.encoder.layer[0].attention.self.sparsebert_dam
    for each in (model, twin):
        torch.manual_seed(0)  # the model's own dropout
        each.zero_grad()
        each(**arguments).loss.backward()
    assert torch.equal(dam.alpha.grad, theirs.alpha.grad)
    sb.detach_dam(twin)
    assert model.bert.sparsebert_dam is dam and not hasattr(twin.bert, "sparsebert_dam")


@pytest.mark.parametrize("gate", ["softmax", "additive", "post"])
def test_padding_teaches_nothing(gate: str) -> None:
    """No gradient for padded columns and rows, even if the loss looks at padded tokens."""
    model = build("bert")
    dam = sb.DifferentiableAttentionMask(
        2, 4, MASK_LENGTH, symmetric=False, hard=False, init_probability=0.9995
    )
    sb.attach_dam(model, dam, gate=gate)
    ids = torch.randint(2, 99, (1, 20))
    real = torch.ones(1, 20, dtype=torch.long)
    real[0, 13:17] = 0
    out = model.bert(input_ids=ids, attention_mask=real).last_hidden_state
    out.square().sum().backward()
    grad = dam.alpha.grad.unflatten(-1, (MASK_LENGTH, MASK_LENGTH))
    padded = torch.zeros(MASK_LENGTH, dtype=torch.bool)
    padded[13:17] = True
    padded[20:] = True
    assert (grad[..., padded] == 0).all() and (grad[..., padded, :] == 0).all()
    assert (grad[..., ~padded, :][..., ~padded] != 0).float().mean() > 0.9


def test_weights_are_returned() -> None:
    model, _ = with_dam("bert", hard=False)
    arguments, _ = inputs("bert", padded=False)
    weights = model(**arguments, output_attentions=True).attentions
    assert len(weights) == 2 and weights[0].shape == (4, 4, 20, 20)
    assert (weights[0].sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"num_layers=3 but BertModel has 2 attention modules; give 1"),
        ({"num_heads": 2}, r"num_heads=2 but BertModel has 4; give 1"),
    ],
)
def test_sizes_must_fit(change: dict[str, int], message: str) -> None:
    sizes = {"num_layers": 1, "num_heads": 4, "seq_len": 8, **change}
    with pytest.raises(ValueError, match=message):
        sb.attach_dam(build("bert"), sb.DifferentiableAttentionMask(**sizes))


def test_refusals() -> None:
    model, dam = with_dam("bert")
    with pytest.raises(ValueError, match="has a DAM already"):
        sb.attach_dam(model, dam)
    long = torch.ones(1, MASK_LENGTH + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"a sequence of 25 tokens.*seq_len={MASK_LENGTH}"):
        model(input_ids=long)
    with pytest.raises(ValueError, match=r"has a DAM.*detach_dam"):
        sb.sparsify(model, dam.binarize())
    sb.detach_dam(model)
    with pytest.raises(ValueError, match="has no DAM"):
        sb.detach_dam(model)
    with pytest.raises(ValueError, match="gate must be one of"):
        sb.attach_dam(model, dam, gate="hard")
    with pytest.raises(TypeError, match="must be a DifferentiableAttentionMask, got AttentionM"):
        sb.attach_dam(model, dam.binarize())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="transformers PreTrainedModel"):
        sb.attach_dam(torch.nn.Linear(2, 2), dam)
    sb.sparsify(model, dam.binarize())
    with pytest.raises(ValueError, match=r"is sparse already.*densify"):
        sb.attach_dam(model, dam)


# ---------------------------------------------------------------------------------- learning


def planted(seq_len: int) -> torch.Tensor:
    """bool [N, N]: odd tokens copy the third to their left, even ones the first of all."""
    i = torch.arange(seq_len)
    needed = torch.zeros(seq_len, seq_len, dtype=torch.bool)
    needed[i, torch.where(i % 2 == 1, (i - 3).clamp(min=0), 0)] = True
    return needed


@pytest.mark.parametrize("penalty", ["expected_l1", "executed_area"])
def test_finds_planted_positions(penalty: str) -> None:
    """A task that can be solved only through known positions: they stay, the rest goes."""
    torch.manual_seed(0)
    n, vocabulary, steps = 16, 12, 220
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=vocabulary, hidden_size=48, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=48, max_position_embeddings=n,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    dam = sb.DifferentiableAttentionMask(1, 1, n, symmetric=False, seed=0)
    sb.attach_dam(model, dam)
    search = MaskSearch(dam, steps, sparsity=0.92, penalty=penalty, tile_rows=4)
    optimizer = torch.optim.AdamW(search.parameter_groups(model, lr=5e-3, mask_lr=0.1))
    needed = planted(n)
    source = needed.float().argmax(-1)
    model.train()
    for step in range(steps):
        ids = torch.randint(0, vocabulary, (64, n))
        search.begin_step(step)
        loss = model(input_ids=ids, labels=ids[:, source]).loss + search.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p = dam.probabilities()[0, 0].detach()
    mask = dam.binarize(sparsity=1 - needed.float().mean().item())
    assert torch.equal(mask.dense()[0, 0], needed), (p[needed].min(), p[~needed].max())

    sb.sparsify(sb.detach_dam(model), mask).eval()
    ids = torch.randint(0, vocabulary, (256, n))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids[:, source]).loss
    assert loss < 0.1  # guessing is log 12 = 2.5
