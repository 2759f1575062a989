"""Sparse HuggingFace models against the models' own eager attention under the same masks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import transformers

import sparsebert as sb
from sparsebert.integrations.huggingface.attached import LayerMask
from sparsebert.testing import root_mean_square, route_bound
from tests.huggingface.models import (
    BATCH,
    LENGTH,
    MASK_LENGTH,
    MODELS,
    VOCAB,
    Run,
    assert_equal_in_fp64,
    build,
    inputs,
    judged,
    padding,
    random_masks,
)

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def check_against_judge(
    model: transformers.PreTrainedModel,
    judge: transformers.PreTrainedModel,
    arguments: dict[str, Any],
    real: torch.Tensor,
) -> None:
    """`model` (sparse, fp32) does in fp32 and in fp64 what `judge` (dense, fp32) does in fp64.

    The bounds follow from the judge's own fp32 error (`route_bound`); in fp64 from the same times
    the ratio of the rounding steps, as the operations are the same.
    """
    exact = Run.of(copy.deepcopy(judge).double(), arguments, real).parts()
    rounded = Run.of(judge, arguments, real).parts()
    found32 = Run.of(model, arguments, real).parts()
    found64 = Run.of(copy.deepcopy(model).double(), arguments, real).parts()
    for what, truth in exact.items():
        bound = route_bound(truth, [rounded[what]], torch.float32)
        error32, error64 = (root_mean_square(x[what] - truth) for x in (found32, found64))
        assert 0.0 < bound < 1e-3 * root_mean_square(truth) < math.inf, what
        assert error32 <= bound, (what, error32, bound)
        assert error64 <= bound * EPS64 / EPS32, (what, error64)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_eager_attention(name: str, padded: bool) -> None:
    """Hidden states, logits and every gradient; another mask for each layer and head.

    Only real tokens are compared: what a padding token sees is nobody's business, and where it
    sees nothing we give zeros, and eager attention a mean over everything.
    """
    if name == "vit" and padded:
        pytest.skip("images are not padded")
    model = build(name)
    masks = random_masks(model)
    judge = judged(model, masks)
    arguments, real = inputs(name, padded=padded)
    check_against_judge(sb.sparsify(model, masks), judge, arguments, real)


def test_masks_change_the_result() -> None:
    """Or the agreement above would prove nothing."""
    model = build("bert")
    arguments, _ = inputs("bert")
    dense = model(**arguments).logits
    sparse = sb.sparsify(model, random_masks(model))(**arguments).logits
    assert (dense - sparse).abs().max() > 0.1


@pytest.mark.parametrize("backend", ["torch", "dense"])
def test_backend_is_used(backend: str) -> None:
    model = build("bert")
    masks = random_masks(model)
    judge = judged(model, masks)
    check_against_judge(sb.sparsify(model, masks, backend=backend), judge, *inputs("bert"))


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
def test_training_after_inference_mode(backend: str) -> None:
    """Plans that are made during an evaluation serve the training after it."""
    model = build("bert")
    sb.sparsify(model, random_masks(model), backend=backend)
    arguments, _ = inputs("bert")
    with torch.inference_mode():
        expected = model(**arguments).loss.item()
    loss = model(**arguments).loss
    loss.backward()
    assert loss.item() == expected


def test_modernbert_windows_are_compiled_into_the_plans() -> None:
    """Local layers must not fall to the dense route (agreement is tested above)."""
    model = build("modernbert")
    sb.sparsify(model, random_masks(model))
    arguments, _ = inputs("modernbert")
    model(**arguments)
    layers = [m for m in model.modules() if isinstance(m, LayerMask)]
    rules = [sorted(layer.ruled) for layer in layers]
    assert rules == [[], [4], [4], []]  # local_attention=8 is 4 on each side
    window = sb.patterns.sliding_window(MASK_LENGTH, window=4)
    assert layers[1].ruled[4].mask == layers[1].mask & window
    (key,) = layers[1].ruled[4].in_use
    assert key[:3] == (LENGTH, LENGTH, torch.device("cpu"))  # type: ignore[index]


@pytest.mark.parametrize("kind", ["bool", "additive", "no query sees key 3"])
def test_a_4d_mask_is_intersected(kind: str) -> None:
    model = build("bert")
    masks = random_masks(model)
    allowed = (torch.rand(BATCH, 1, LENGTH, LENGTH) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    if kind == "no query sees key 3":
        allowed[..., 3] = False
        allowed[..., 0] = True  # a key for query 3, if the sparse mask lets it have one
        masks[:, :, 3, 0] = True
    given = allowed
    if kind == "additive":
        given = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    arguments, _ = inputs("bert", padded=False)
    del arguments["attention_mask"]
    judge = judged(model, masks)
    additive = torch.zeros(allowed.shape, dtype=torch.float64)
    additive = additive.masked_fill(~allowed, torch.finfo(torch.float64).min)
    expected = judge.double()(**arguments, attention_mask=additive)
    got = sb.sparsify(model, masks).double()(**arguments, attention_mask=given)
    assert_equal_in_fp64(got.logits, expected.logits)


def test_dead_rows_and_whole_padding_give_finite_results() -> None:
    """A token that may attend to nothing gets zeros from the attention, not NaN."""
    model = build("bert")
    masks = random_masks(model)
    masks[:, :, 5] = False
    sb.sparsify(model, masks)
    arguments, _ = inputs("bert")
    arguments["attention_mask"][1] = 0
    arguments["labels"][1] = -100
    out = model(**arguments)
    out.loss.backward()
    assert out.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    attention = model.bert.encoder.layer[0].attention.self
    context, _ = attention(torch.randn(1, LENGTH, 32))
    assert context[0, 5].eq(0).all() and context[0, 6].ne(0).all()


# ------------------------------------------------------------------------ dropout, checkpoints


def test_dropout_is_seeded_and_leaves_the_mean() -> None:
    model = build("bert").double()
    attention = sb.sparsify(model, random_masks(model)).bert.encoder.layer[0].attention.self
    states = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    exact, _ = attention(states)
    attention.train()
    attention.dropout.p = 0.25

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return attention(states.expand(400, -1, -1))[0]

    draws = draw(3)
    assert draws.equal(draw(3))
    assert not draws.equal(draw(4))
    error_of_mean = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - exact[0]).abs() <= 5 * error_of_mean).all()
    attention.eval()
    assert attention(states)[0].equal(exact)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_repeats_the_same_dropout(reentrant: bool) -> None:
    model = build("bert").train()
    sb.sparsify(model, random_masks(model))
    arguments, _ = inputs("bert")

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model.zero_grad()
        model(**arguments).loss.backward()
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    assert all(plain[name].equal(recomputed[name]) for name in plain)


def test_autocast() -> None:
    """bf16 where the layers run in bf16, ModernBERT's rotary embeddings (in fp32) included."""
    for name in ("bert", "modernbert"):
        model = build(name)
        sb.sparsify(model, random_masks(model))
        arguments, real = inputs(name)
        exact = model(**arguments).logits[real]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(**arguments).logits[real]
        assert got.dtype == torch.bfloat16
        assert (got - exact).abs().mean() < 0.05 * exact.abs().mean()


# ------------------------------------------------------------------------ attention weights


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_output_attentions_are_those_of_eager_attention(name: str) -> None:
    model = build(name).double()
    masks = random_masks(model)
    judge = judged(model, masks)
    sb.sparsify(model, masks)
    arguments, real = inputs(name)
    expected = judge(**arguments, output_attentions=True)
    got = model(**arguments, output_attentions=True)
    assert len(got.attentions) == len(expected.attentions) == 2
    for ours, theirs in zip(got.attentions, expected.attentions, strict=True):
        rows = real[:, None, :, None]
        assert_equal_in_fp64(ours * rows, theirs * rows)
    # The same result with and without: two routes, one contract.
    without = model(**arguments).logits
    assert_equal_in_fp64(got.logits[real], without[real])


# ------------------------------------------------------------------------ decoders and caches


def test_cached_steps_use_the_right_rows() -> None:
    """One token, then several, against one pass over everything; left padding included."""
    model = build("gpt2").double()
    sb.sparsify(model, random_masks(model))
    arguments, real = inputs("gpt2")
    rows = real[:3]  # no, right and left padding
    ids, attention_mask = arguments["input_ids"][:3], arguments["attention_mask"][:3]
    whole = model(ids, attention_mask=attention_mask).logits
    cache, steps = None, []
    for start, stop in ((0, 9), (9, 10), (10, 14), (14, LENGTH)):
        out = model(
            ids[:, start:stop],
            attention_mask=attention_mask[:, :stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        steps.append(out.logits)
    assert_equal_in_fp64(torch.cat(steps, dim=1)[rows], whole[rows])


def test_generate_with_and_without_a_cache() -> None:
    model = build("gpt2").double()
    sb.sparsify(model, random_masks(model))
    ids = torch.randint(2, VOCAB, (2, 6))
    attention_mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, attention_mask=attention_mask, use_cache=True, **settings)
    plain = model.generate(ids, attention_mask=attention_mask, use_cache=False, **settings)
    assert cached.equal(plain) and cached.shape == (2, 18)
    with pytest.raises(ValueError, match="25 tokens, but the masks cover 24"):
        model.generate(ids, **{**settings, "max_new_tokens": 30})
    with pytest.raises(ValueError, match=r"static key/value cache .* default cache, which grows"):
        model.generate(ids, cache_implementation="static", **settings)


def test_packed_sequences_stay_apart() -> None:
    """transformers detects them by their position_ids; each begins at the mask's position 0."""
    model = build("gpt2").double()
    masks = random_masks(model)
    judge = judged(model, masks)
    sb.sparsify(model, masks, positions="batch")
    ids = torch.randint(2, VOCAB, (2, LENGTH))
    lengths = ((8, 1, 11), (3, 17))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    settings = {"position_ids": positions, "use_cache": False}
    expected, got = judge(ids, **settings).logits, model(ids, **settings).logits
    assert_equal_in_fp64(got, expected)
    unpacked = model(ids, use_cache=False).logits
    assert (got - unpacked)[:, 8:].abs().max() > 1e-3

    sb.sparsify(model, masks)
    for weights in (False, True):
        got = model(ids, output_attentions=weights, **settings).logits
        for row, parts in zip(range(2), lengths, strict=True):
            alone = [model(part[None], use_cache=False).logits for part in ids[row].split(parts)]
            assert_equal_in_fp64(got[row : row + 1], torch.cat(alone, dim=1))


# ------------------------------------------------------------------------ encoder-decoders


def _seq2seq(name: str) -> transformers.PreTrainedModel:
    if name == "t5":
        config: Any = transformers.T5Config(
            d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=37, vocab_size=VOCAB
        )
        config.decoder_start_token_id = 0
        return transformers.T5ForConditionalGeneration(config)
    sizes: dict[str, Any] = {
        "d_model": 32,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 37),
        "vocab_size": VOCAB,
        **dict.fromkeys(
            ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1
        ),
    }
    if name == "bart":
        return transformers.BartForConditionalGeneration(
            transformers.BartConfig(**sizes, forced_eos_token_id=None)
        )
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**sizes, num_mel_bins=8, max_source_positions=LENGTH)
    )


@pytest.mark.parametrize("name", ["bart", "whisper", "t5"])
def test_encoder_decoders_are_sparse_in_the_encoder(name: str) -> None:
    """T5's position bias is kept; decoder and cross-attention are untouched."""
    torch.manual_seed(0)
    model = _seq2seq(name).eval().double()
    decoder = model.get_decoder()
    masks = random_masks(model)
    assert masks.shape == (2, 4, MASK_LENGTH, MASK_LENGTH)
    judge = judged(model, masks)
    sb.sparsify(model, masks)
    assert decoder.config._attn_implementation == "sdpa"
    assert model.get_encoder().config._attn_implementation == "sparsebert"
    if name == "whisper":
        arguments: dict[str, Any] = {"input_features": torch.randn(2, 8, 2 * LENGTH).double()}
        real = torch.ones(2, LENGTH, dtype=torch.bool)
    else:
        real = padding()[:2]
        arguments = {
            "input_ids": torch.randint(2, VOCAB, (2, LENGTH)),
            "attention_mask": real.long(),
        }
    expected = judge.get_encoder()(**arguments).last_hidden_state
    encoded = model.get_encoder()(**arguments).last_hidden_state
    assert_equal_in_fp64(encoded[real], expected[real])

    decoder_ids = torch.randint(2, VOCAB, (2, 5))
    out = model(**arguments, decoder_input_ids=decoder_ids)
    dense = sb.densify(copy.deepcopy(model))
    given = {k: v for k, v in arguments.items() if k == "attention_mask"}
    same = dense(encoder_outputs=(encoded,), decoder_input_ids=decoder_ids, **given)
    assert out.logits.equal(same.logits)


# ------------------------------------------------------------------------ torch.compile


def _one_layer_bert() -> transformers.PreTrainedModel:
    torch._dynamo.reset()
    model = build("bert")
    del model.bert.encoder.layer[1:]  # tracing takes its time
    return model


def test_compiles_into_one_graph() -> None:
    """Forward and backward with dropout, without a break, and with the same draws."""
    model = _one_layer_bert().train()
    sb.sparsify(model, random_masks(model))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    arguments, _ = inputs("bert")
    got = []
    for run in (compiled, model):
        torch.manual_seed(5)
        model.zero_grad()
        loss = run(**arguments).loss
        loss.backward()
        got.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for ours, eager in zip(*got, strict=True):
        torch.testing.assert_close(ours, eager)


def test_compiled_graphs_follow_lengths_and_masks() -> None:
    torch._dynamo.reset()
    model = build("bert")
    masks = random_masks(model)
    sb.sparsify(model, masks)
    attention = model.bert.encoder.layer[0].attention.self
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    states, real = torch.randn(4, LENGTH, 32), padding()

    def check(length: int, padded: bool = False) -> None:
        arguments = {"attention_mask": real[:, :length] if padded else None}
        with torch.no_grad():
            expected, _ = attention(states[:, :length], **arguments)
            got, _ = compiled(states[:, :length], **arguments)
        torch.testing.assert_close(got, expected)

    check(LENGTH)
    check(13, padded=True)
    check(LENGTH)
    sb.sparsify(model, ~masks | torch.eye(MASK_LENGTH, dtype=torch.bool))
    check(13)
    sb.densify(model)
    check(13)


def test_compiled_modernbert_keeps_its_windows() -> None:
    torch._dynamo.reset()
    model = build("modernbert")
    del model.model.layers[2:]  # one global, one local
    sb.sparsify(model, random_masks(model))
    arguments, real = inputs("modernbert")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, got = model(**arguments).logits, compiled(**arguments).logits
    torch.testing.assert_close(got[real], expected[real])
