"""position_scores: against finite differences of a model whose attention is really changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, BertConfig, BertForSequenceClassification, BertModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import sparsebert as sb
from sparsebert.integrations.huggingface.scores import KINDS, position_scores
from tests.huggingface import families, models

L, H, N, B, VOCAB = 2, 2, 5, 3, 20
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
STEP = 1e-5  # in fp64: central differences are right to about STEP ** 2 and eps / STEP, 1e-10


def classifier(dropout: float = 0.0, layers: int = L, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=H,
        intermediate_size=8,
        max_position_embeddings=N,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.4,  # attention that differs, in so small a model
        **settings,
    )
    return BertForSequenceClassification(config).double().eval()


def batch(real: torch.Tensor = REAL, seed: int = 3, **more: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, real.shape, generator=generator)
    labels = torch.randint(0, 2, (len(real),), generator=generator)
    return {"input_ids": ids, "attention_mask": real, "labels": labels, **more}


# --------------------------------------------------------------------------------- the oracle


def _changed(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> Any:
    """Attention written out, whose probabilities `module.change` may alter."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = torch.exp(scores - scores.amax(-1, keepdim=True))
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    module.seen = probabilities.clone()  # type: ignore[assignment]
    if getattr(module, "change", None) is not None:
        probabilities = module.change(probabilities.clone())  # type: ignore[operator]
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register("changed", _changed)
AttentionMaskInterface.register("changed", eager_mask)


def expected_scores(model: Any, data: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """[L, H, N, N]: every position of every example is moved a little, nothing else."""
    model.set_attn_implementation("changed")
    layers = [layer.attention.self for layer in model.bert.encoder.layer]

    def loss() -> float:
        with torch.no_grad():
            return float(model(**data).loss)

    loss()
    before = [layer.seen for layer in layers]
    real = data["attention_mask"].bool()
    n = real.shape[1]
    total, seen = torch.zeros(len(layers), H, n, n, dtype=torch.float64), torch.zeros(n, n)
    for b, i, j in itertools.product(range(len(real)), range(n), range(n)):
        if not (real[b, i] and real[b, j]):
            continue
        seen[i, j] += 1
        for index, head in itertools.product(range(len(layers)), range(H)):
            row = before[index][b, head, i]
            if kind == "attention":
                total[index, head, i, j] += row[j]
                continue
            towards = torch.zeros(n, dtype=torch.float64)
            if kind == "drop":  # the row without j, made to sum to 1 again
                towards = row.clone()
                towards[j] = 0.0
                towards = towards / towards.sum() - row
            else:
                towards[j] = 1.0
            values = []
            for step in (STEP, -STEP):

                def change(
                    p: torch.Tensor, at: Any = (b, head, i), by: Any = step * towards
                ) -> Any:
                    p[at] += by
                    return p

                layers[index].change = change
                values.append(loss())
                layers[index].change = None
            slope = (values[0] - values[1]) / (2.0 * STEP)
            total[index, head, i, j] += slope**2 if kind == "drop" else abs(row[j] * slope)
    model.set_attn_implementation("eager")
    return total / seen.clamp(min=1.0)


def assert_scores(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to fp32: scores are squares of differences of numbers of their row's size."""
    assert got.dtype == torch.float32 and got.device.type == "cpu"
    assert got.shape == expected.shape
    budget = 64 * torch.finfo(torch.float32).eps * expected.amax(-1, keepdim=True) + 1e-9
    assert ((got - expected).abs() <= budget).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_changes_of_the_attention(kind: str, ragged: bool) -> None:
    """Each example's effect is squared, not the sum of all: the mean of effects would cancel."""
    data = batch(REAL if ragged else torch.ones_like(REAL))
    model = classifier()
    expected = expected_scores(model, data, kind)
    assert expected.max() > 1e-4  # far above the error of the differences
    assert_scores(position_scores(model, [data], kind=kind), expected)


def test_a_dropped_position_changes_the_loss_as_predicted() -> None:
    """Really dropped, in the last layer of a model that is linear from there on.

    Then first order is all there is, and the score is the squared change itself.
    """
    model = BertModel(classifier(layers=1).config, add_pooling_layer=False).double().eval()
    data = {k: v for k, v in batch().items() if k != "labels"}
    one = {k: v[:1] for k, v in data.items()}
    inner = model.encoder.layer[0].attention.self
    weights = torch.randn(N, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Tensor] = []
    hook = inner.register_forward_hook(lambda module, args, out: seen.append(out[0]))

    def loss(output: Any, given: Any) -> torch.Tensor:
        return (seen[-1] * weights).sum()  # of the attention's own output

    scores = position_scores(model, [one], kind="drop", loss=loss)
    model.set_attn_implementation("changed")

    def value() -> float:
        with torch.no_grad():
            return float(loss(model(**one), one))

    start = value()
    for head, i, j in itertools.product(range(H), range(N), range(N)):

        def drop(p: torch.Tensor, h: int = head, i: int = i, j: int = j) -> torch.Tensor:
            p[0, h, i, j] = 0.0
            p[0, h, i] /= p[0, h, i].sum()
            return p

        inner.change = drop
        change = value() - start
        assert float(scores[0, head, i, j]) == pytest.approx(change**2, rel=1e-4, abs=1e-9)
    hook.remove()


# ------------------------------------------------------------------------------ many batches


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_several_lengths(kind: str) -> None:
    """Means are over examples, however they are batched; no batch is kept."""
    model = classifier()
    parts = [batch(REAL[:2], seed=1), batch(REAL[1:2, :3], seed=2), batch(REAL, seed=3)]

    def summed(output: Any, given: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(output.logits, given["labels"], reduction="sum")

    def single() -> Iterator[dict[str, torch.Tensor]]:
        for part in parts:
            for row in range(len(part["labels"])):
                length = int(part["attention_mask"][row].sum())
                example = {k: v[row : row + 1] for k, v in part.items()}
                yield {k: v[:, :length] if v.ndim == 2 else v for k, v in example.items()}

    one = position_scores(model, iter(parts), kind=kind, loss=summed)
    assert_scores(one, position_scores(model, single(), kind=kind, loss=summed).double())
    first_longest = position_scores(model, parts[::-1], kind=kind, loss=summed)
    assert_scores(first_longest, one.double())


def test_seq_len() -> None:
    model, data = classifier(), batch()
    scores = position_scores(model, [data], seq_len=N + 2)
    assert scores.shape == (L, H, N + 2, N + 2)
    assert torch.equal(scores[..., :N, :N], position_scores(model, [data]))
    assert scores[..., N:, :].eq(0).all() and scores[..., N:].eq(0).all()
    with pytest.raises(ValueError, match="a batch of 5 tokens for scores of seq_len=4"):
        position_scores(model, [data], seq_len=4)
    with pytest.raises(ValueError, match="seq_len=0"):
        position_scores(model, [data], seq_len=0)


def test_one_real_token() -> None:
    """Its row has nothing else to take over: nothing is gained or lost, and nothing is NaN."""
    scores = position_scores(classifier(), [batch(torch.tensor([[1, 0, 0]]))])
    assert scores.isfinite().all() and scores.abs().max() < 1e-9


def test_without_labels_it_is_the_embedding_that_counts() -> None:
    """The length of the mean hidden state is of no account, nor is what padding holds."""
    model = classifier().bert
    data = {k: v for k, v in batch().items() if k != "labels"}

    def projected(output: Any, given: Any) -> torch.Tensor:
        real = given["attention_mask"][..., None].double()
        mean = (output.last_hidden_state * real).sum(1) / real.sum(1)
        mean = mean / mean.norm(dim=-1, keepdim=True)
        direction = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        return (mean * direction).sum()

    expected = position_scores(model, [data], loss=projected)
    assert_scores(position_scores(model, [data]), expected.double())
    other = {**data, "input_ids": data["input_ids"].masked_fill(REAL == 0, 7)}
    assert_scores(position_scores(model, [other]), expected.double())


# ------------------------------------------------------------------------- the model afterwards


def test_the_model_is_as_before_also_after_an_error() -> None:
    model = classifier(dropout=0.5)
    model.set_attn_implementation("sdpa")
    model.train()
    model.bert.encoder.layer[0].eval()  # as one who trains a part of it does
    model.bert.embeddings.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(9)
    state = torch.get_rng_state()

    def wrong(output: Any, given: Any) -> torch.Tensor:
        raise RuntimeError("no such loss")

    with pytest.raises(RuntimeError, match="no such loss"):
        position_scores(model, [batch()], loss=wrong)
    scores = position_scores(model, [batch()])
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), state)  # no dropout was drawn
    torch.testing.assert_close(scores, position_scores(classifier(), [batch()]))


def test_frozen_models_and_no_grad() -> None:
    expected = position_scores(classifier(), [batch()])
    with torch.no_grad():
        scores = position_scores(classifier().requires_grad_(False), [batch()])
    assert torch.equal(scores, expected) and scores.max() > 0


# ------------------------------------------------------------------------------- many families


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "gpt2"])
def test_families(name: str) -> None:
    """Grouped keys, windows, shared layers, images: a score for each head's each position."""
    model = models.build(name)
    data, _ = models.inputs(name, padded=False)
    real = torch.ones(models.BATCH, models.LENGTH, dtype=torch.long)
    if name != "vit":
        real[1, 13:] = 0
        data["attention_mask"] = real
        data["labels"] = data["labels"].masked_fill(real == 0, -100)
    else:
        real = torch.ones(models.BATCH, 17, dtype=torch.long)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = torch.stack(model(**data, output_attentions=True).attentions)  # [L, B, H, N, N]
    pairs = real[:, :, None] * real[:, None, :]
    mean = (found.double() * pairs[:, None]).sum(1) / pairs.sum(0)
    assert mean.shape[1] == 4
    assert_scores(position_scores(model, [data], kind="attention"), mean)
    for kind in ("attention_gradient", "drop"):
        scores = position_scores(model, [data], kind=kind)
        assert scores.shape == mean.shape and scores.isfinite().all()
        assert (scores[mean == 0.0] == 0.0).all()  # what a window hides
        assert all(layer.max() > 0 for layer in scores)


def test_token_types_and_causal_models() -> None:
    types = torch.tensor([[0, 0, 1, 1, 1]]).expand(B, N)
    model = classifier()
    plain, typed = (position_scores(model, [batch(**m)]) for m in ({}, {"token_type_ids": types}))
    assert not torch.allclose(plain, typed)
    gpt2, (data, _) = models.build("gpt2"), models.inputs("gpt2", padded=False)
    scores = position_scores(gpt2, [data])
    above = torch.ones(models.LENGTH, models.LENGTH, dtype=torch.bool).triu(1)
    assert (scores[..., above] == 0.0).all() and scores[..., ~above].max() > 0


def test_bf16() -> None:
    """The scores are sums, in fp32, of what the model computes in bf16."""
    model = classifier().bfloat16()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = torch.stack(model(**batch(), output_attentions=True).attentions).double()
    pairs = REAL[:, :, None] * REAL[:, None, :]
    mean = (found * pairs[:, None]).sum(1) / pairs.sum(0)
    assert_scores(position_scores(model, [batch()], kind="attention"), mean)
    scores = position_scores(model, [batch()])
    assert scores.dtype == torch.float32 and scores.isfinite().all() and scores.max() > 0


def test_masks_begin_from_them() -> None:
    """ALBERT has one attention module for three layers: their scores are averaged."""
    model = models.build("albert")
    data, _ = models.inputs("albert", padded=False)
    scores = position_scores(model, [data], seq_len=models.MASK_LENGTH)
    dam = sb.DifferentiableAttentionMask(1, 4, models.MASK_LENGTH, symmetric=False)
    sb.attach_dam(model, dam.start_from(scores, 0.9))
    mask = dam.binarize(sparsity=0.9, allow_empty_rows=True)
    mean = scores.mean(0)
    for head in range(4):
        kept = mask.dense()[0, head]
        assert mean[head][kept].min() >= mean[head][~kept].max()


# ---------------------------------------------------------------------------------- bad input


def test_refusals() -> None:
    model, data = classifier(), batch()
    with pytest.raises(ValueError, match="kind must be one of"):
        position_scores(model, [data], kind="magnitude")
    with pytest.raises(ValueError, match="batches is empty"):
        position_scores(model, [])
    with pytest.raises(TypeError, match="transformers"):
        position_scores(nn.Linear(2, 2), [data])
    unlabelled = {k: v for k, v in data.items() if k != "labels"}
    with pytest.raises(ValueError, match="neither a loss nor a last_hidden_state; put labels"):
        position_scores(model, [unlabelled])
    left = batch(torch.tensor([[0, 1, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"begins with padding.*pad at the right"):
        position_scores(model, [left], kind="attention")
    four = {**data, "attention_mask": torch.zeros(B, 1, N, N, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"attention_mask is \[3, 1, 5, 5\].* \[3, 5\]"):
        position_scores(model, [four], kind="attention")
    with pytest.raises(ValueError, match="does not depend on the attention that layer 1 returns"):
        position_scores(
            model,
            [{**data, "output_hidden_states": True}],
            loss=lambda output, given: output.hidden_states[1].square().sum(),
        )
    with pytest.raises(ValueError, match="pass the encoder alone"):
        t5 = families.ACCEPTED["t5"]()
        position_scores(t5, [{"input_ids": data["input_ids"], "decoder_input_ids": REAL}])


def test_models_that_are_not_dense() -> None:
    sparse = sb.sparsify(classifier(), sb.patterns.star(N))
    with pytest.raises(ValueError, match=r"is sparse.*densify\(model\) first"):
        position_scores(sparse, [batch()])
    dam = sb.DifferentiableAttentionMask(1, H, N, dtype=torch.float64)
    learning = sb.attach_dam(classifier(), dam)
    with pytest.raises(ValueError, match=r"has a DAM.*detach_dam\(model\) first"):
        position_scores(learning, [batch()])
    scores = position_scores(sb.detach_dam(learning), [batch()])
    torch.testing.assert_close(scores, position_scores(classifier(), [batch()]))
