"""Position i of a mask is token i of every sequence: padded batches, windows in caches."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.masking_utils import chunked_causal_mask_function

import sparsebert as sb
from sparsebert.integrations.huggingface.attached import LayerMask
from sparsebert.integrations.huggingface.model_rules import read_mask, sparsebert_mask
from sparsebert.integrations.huggingface.padding import (
    ToFront,
    may_begin_with_padding,
    values_from_first,
)
from tests.huggingface.models import (
    LENGTH,
    MASK_LENGTH,
    VOCAB,
    assert_equal_in_fp64,
    build,
    inputs,
    judged,
    padding,
    random_masks,
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": VOCAB,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), None),
}


def causal_model(name: str) -> transformers.PreTrainedModel:
    if name == "gpt2":
        return build("gpt2").double()
    torch.manual_seed(0)
    more: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
    if name == "Mistral":
        more["sliding_window"] = 6
    if name == "Gemma3Text":
        more |= {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    config = getattr(transformers, f"{name}Config")(**_SIZES, **more)
    model = getattr(transformers, name.removesuffix("Text") + "ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return model.eval().double()


def left_padded() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """ids, attention_mask (1 = real), and how many padding tokens each sequence begins with."""
    before = [0, 5, 11]
    ids = torch.randint(2, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(4))
    real = torch.arange(LENGTH) >= torch.tensor(before)[:, None]
    return ids.masked_fill(~real, 1), real.long(), before


def positions_of(real: torch.Tensor) -> torch.Tensor:
    return (real.cumsum(-1) - 1).clamp(min=0)


# ------------------------------------------------------------------------ padded batches


@pytest.mark.parametrize("name", ["gpt2", "Llama", "Mistral"])
@pytest.mark.parametrize("weights", [False, True])
def test_a_left_padded_batch_equals_each_sequence_alone(name: str, weights: bool) -> None:
    """By the plan and, with attention weights, by the dense route; every gradient too."""
    model = causal_model(name)
    sb.sparsify(model, random_masks(model))
    ids, real, before = left_padded()

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return logits.double().sin().sum()

    def gradients() -> list[torch.Tensor]:
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    settings = {"output_attentions": weights, "use_cache": False}
    out = model(ids, attention_mask=real, position_ids=positions_of(real), **settings)
    loss_of(out.logits[real.bool()]).backward()
    together = gradients()
    for row, start in enumerate(before):
        alone = model(ids[row : row + 1, start:], **settings)
        assert_equal_in_fp64(out.logits[row, start:], alone.logits[0])
        loss_of(alone.logits).backward()
        if weights:
            for ours, theirs in zip(out.attentions, alone.attentions, strict=True):
                assert_equal_in_fp64(ours[row, :, start:, start:], theirs[0])
                assert not ours[row, :, :, :start].any()
    for ours, theirs in zip(together, gradients(), strict=True):
        assert_equal_in_fp64(ours, theirs)


@pytest.mark.parametrize("name", ["gpt2", "Llama", "Mistral", "Gemma3Text"])
def test_a_left_padded_batch_generates_what_each_sequence_does_alone(name: str) -> None:
    """With a cache, past the windows of Mistral and Gemma 3."""
    model = causal_model(name)
    sb.sparsify(model, random_masks(model))
    ids, real, before = left_padded()
    ids, real = ids[:, :12], real[:, :12]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=real, **settings)
    assert together.shape == (3, MASK_LENGTH)
    for row, start in enumerate(before):
        alone = model.generate(ids[row : row + 1, start:], **settings)
        assert together[row, start:].equal(alone[0])
    # Or the mask made no difference, and the above would prove nothing.
    assert not sb.densify(model).generate(ids, attention_mask=real, **settings).equal(together)


def test_encoders_too() -> None:
    """RoBERTa counts its positions from the first real token, too."""
    model = build("roberta").double()
    sb.sparsify(model, random_masks(model))
    ids, real, before = left_padded()
    out = model(ids, attention_mask=real).logits
    for row, start in enumerate(before):
        assert_equal_in_fp64(out[row, start:], model(ids[row : row + 1, start:]).logits[0])


def test_positions_of_the_batch_on_request(tmp_path: Any) -> None:
    """Also after the masks were saved."""
    model = build("bert").double()
    masks = random_masks(model)
    ids, real, _ = left_padded()
    allowed = torch.zeros(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    allowed[:] = real.bool()[:, None, None, :]
    shared = masks[:1, :1].expand_as(masks)
    sb.sparsify(model, shared, positions="batch")
    expected = model(ids, attention_mask=allowed).logits  # a 4-D mask is one of the batch
    sb.save_masks(model, tmp_path)
    again = sb.load_masks(build("bert").double(), tmp_path)
    for sparse in (model, again):
        assert "positions='batch'" in str(sparse)
        got = sparse(ids, attention_mask=real).logits
        assert_equal_in_fp64(got[real.bool()], expected[real.bool()])
    sb.sparsify(model, shared)
    moved = model(ids, attention_mask=real).logits
    assert (moved - expected)[real.bool()].abs().max() > 0.01
    assert_equal_in_fp64(moved[0], expected[0])


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions must be one of .* got 'token'"):
        sb.sparsify(build("bert"), random_masks(build("bert")), positions="token")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_batch_that_begins_with_tokens_is_not_moved(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    sb.sparsify(model, random_masks(model))
    arguments, _ = inputs(name)
    rows = [0, 1, 3]  # no padding, on the right, in the middle
    arguments = {key: value[rows] for key, value in arguments.items()}

    def fail(*_: Any) -> None:
        raise AssertionError("moved")

    monkeypatch.setattr(ToFront, "__init__", fail)
    model(**arguments)
    with pytest.raises(AssertionError, match="moved"):
        model(**inputs(name)[0])


def test_compiled_graphs_move_tokens_without_a_look() -> None:
    """One graph for all padding."""
    torch._dynamo.reset()
    model = build("bert")
    sb.sparsify(model, random_masks(model))
    attention = model.bert.encoder.layer[0].attention.self
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    states, real = torch.randn(3, LENGTH, 32), left_padded()[1].bool()
    with torch.no_grad():
        compiled(states, attention_mask=real)
        with torch.compiler.set_stance("fail_on_recompile"):
            for mask in (real, real.flip(-1), torch.ones_like(real)):
                expected, _ = attention(states, attention_mask=mask)
                got, _ = compiled(states, attention_mask=mask)
                torch.testing.assert_close(got, expected)


def test_moved_tokens_come_back() -> None:
    """Derivatives of first and second order, and zeros for what stood before the first token."""
    first = torch.tensor([0, 2, 4])
    move = ToFront(first, 5)
    x = torch.randn(3, 2, 5, 2, dtype=torch.float64, requires_grad=True)
    moved = move.tokens(x)
    for row, start in enumerate(first):
        assert moved[row].equal(x[row].roll(-int(start), dims=1))
    back = move.back(moved)
    kept = (torch.arange(5) >= first[:, None])[:, None, :, None]
    assert back.equal(x * kept)
    torch.autograd.gradcheck(lambda x: move.back(move.tokens(x)), x)
    torch.autograd.gradgradcheck(lambda x: move.back(move.tokens(x).sin()), x)


def test_dam_counts_positions_as_sparsify_does() -> None:
    """A mask that is learned on padded batches is the mask that runs."""
    model = build("gpt2").double()
    ids, real, before = left_padded()
    dam = sb.DifferentiableAttentionMask(2, 4, MASK_LENGTH, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        dam.alpha.normal_()
    sb.attach_dam(model, dam)
    model.eval()
    settings = {"use_cache": False}
    out = model(ids, attention_mask=real, position_ids=positions_of(real), **settings).logits
    for row, start in enumerate(before):
        alone = model(ids[row : row + 1, start:], **settings).logits
        assert_equal_in_fp64(out[row, start:], alone[0])


def test_tokens_move_under_transforms() -> None:
    """torch.func and forward-mode AD, with padding masks that they hide from us."""
    first = torch.tensor([0, 2, 4])
    x, tangent = torch.randn(2, 3, 2, 5, 2, dtype=torch.float64)

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        move = ToFront(first, 5)
        return move.back(2.0 * move.tokens(x))

    out, derivative = torch.func.jvp(there_and_back, (x,), (tangent,))
    assert out.equal(there_and_back(x)) and derivative.equal(there_and_back(tangent))
    ones = torch.ones_like(x)
    assert torch.func.grad(lambda x: there_and_back(x).sum())(x).equal(there_and_back(ones))
    assert torch.func.vmap(there_and_back)(torch.stack([x, x]))[1].equal(out)
    real = torch.ones(2, 3, 5, dtype=torch.bool)
    seen: list[bool] = []
    torch.func.vmap(lambda real: seen.append(may_begin_with_padding(real)) or real)(real)
    assert seen == [True] and not may_begin_with_padding(real[0])


def test_a_learned_mask_as_each_sequence_sees_it() -> None:
    mask = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    first = torch.tensor([0, 3])
    seen = values_from_first(mask, first)
    assert seen.shape == (2, 2, 5, 5) and seen[0].equal(mask)
    assert seen[1, :, 3:, 3:].equal(mask[:, :2, :2])
    torch.autograd.gradcheck(lambda mask: values_from_first(mask, first), mask)


def test_packed_sequences_begin_at_position_zero_under_windows_too() -> None:
    model = causal_model("Mistral")
    sb.sparsify(model, random_masks(model))
    ids = torch.randint(2, VOCAB, (1, LENGTH))
    where = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    got = model(ids, position_ids=where, use_cache=False).logits
    alone = [model(part, use_cache=False).logits for part in ids.split((9, LENGTH - 9), dim=1)]
    assert_equal_in_fp64(got, torch.cat(alone, dim=1))


@pytest.mark.parametrize("sizes", [{}, {"local_size": 1}, {"use_vmap": True}])
def test_where_a_chunk_begins_no_sequence_does(sizes: dict[str, Any]) -> None:
    """Nor where a window holds one token, or a model has a rule of its own."""
    rule = chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    config = SimpleNamespace(attention_chunk_size=None if sizes else 4)
    settings: dict[str, Any] = {"batch_size": 1, "q_length": 8, "kv_length": 8}
    settings |= {"mask_function": rule, "config": config, **sizes}
    assert read_mask(sparsebert_mask(**settings), True, 8, 8).first is None


# ------------------------------------------------------------------------ masks from around


def text_and_image_model() -> transformers.PreTrainedModel:
    text = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    image = {key: _SIZES[key] for key in ("hidden_size", "num_attention_heads")}
    image |= {"num_hidden_layers": 1, "intermediate_size": 37, "image_size": 36, "patch_size": 9}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=image,
        mm_tokens_per_image=4,
        **{f"{name}_token_index": VOCAB - 3 + i for i, name in enumerate(("image", "boi", "eoi"))},
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return model.eval().double()


def test_a_model_around_makes_masks_in_our_form() -> None:
    """Gemma 3 with images makes the masks of its language model, by its own configuration."""
    model = text_and_image_model()
    part = model.model.language_model
    config, inner = model.config, part.config
    ids = torch.randint(2, VOCAB - 3, (2, LENGTH), generator=torch.Generator().manual_seed(4))
    real = torch.ones(2, LENGTH, dtype=torch.long)
    real[1, :5] = 0

    def logits(first: int = 0) -> torch.Tensor:
        """Of both sequences, or of the second alone."""
        shown, mask = (ids, real) if not first else (ids[1:, first:], real[1:, first:])
        out = model(
            shown,
            attention_mask=mask,
            position_ids=positions_of(mask),
            token_type_ids=torch.zeros_like(shown),
            use_cache=False,
        )
        return out.logits[-1, 5 - first :]

    dense = logits()
    masks = random_masks(part)
    sb.sparsify(model, masks, modules=part)
    assert model.config is not config and model.config.text_config is part.config is not inner
    assert_equal_in_fp64(logits(), logits(5))
    sparse = logits()
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="now runs 'eager' attention"):
        model.set_attn_implementation("eager")
    assert not logits().equal(sparse)
    model.set_attn_implementation("sparsebert")
    assert logits().equal(sparse)
    model.set_attn_implementation({"text_config": "sparsebert", "vision_config": "sdpa"})
    assert logits().equal(sparse)

    for chosen in (masks, ~masks):  # a part of what was chosen, by itself
        sb.sparsify(model, chosen[0], modules=[part.layers[0]])
    sb.densify(part)
    model.set_attn_implementation("sdpa")
    assert logits().equal(dense)
    model = twin
    sb.densify(model)
    assert model.config.text_config is model.model.language_model.config
    assert logits().equal(dense)


# ------------------------------------------------------------------------ windows in caches


@pytest.mark.parametrize("name", ["Mistral", "Gemma3Text"])
@pytest.mark.parametrize("padded", [False, True])
def test_steps_past_the_window_use_the_right_rows_and_columns(name: str, padded: bool) -> None:
    """One token, then several, against the model's own eager attention over everything."""
    model = causal_model(name)
    masks = random_masks(model)
    judge = judged(model, masks)
    sb.sparsify(model, masks)
    ids, real, _ = left_padded()
    if not padded:
        real = torch.ones_like(real)
    where = {"position_ids": positions_of(real)}
    expected = judge(ids, attention_mask=real, use_cache=False, **where).logits
    cache, steps = None, []
    for start, stop in ((0, 4), (4, 5), (5, 9), (9, 10), (10, 11), (11, LENGTH)):
        out = model(
            ids[:, start:stop],
            attention_mask=real[:, :stop] if padded else None,
            position_ids=where["position_ids"][:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        steps.append(out.logits)
    layers = [m for m in model.modules() if isinstance(m, LayerMask)]
    assert len(layers) == 2 and cache.layers[0].keys.shape[2] < LENGTH  # it did drop keys
    assert_equal_in_fp64(torch.cat(steps, dim=1)[real.bool()], expected[real.bool()])


def test_a_static_cache_is_refused_also_where_all_layers_slide() -> None:
    """`generate` makes the masks of such a cache beforehand and passes them as attention_mask."""
    model = causal_model("Mistral")
    sb.sparsify(model, random_masks(model))
    ids, _, _ = left_padded()
    settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(ValueError, match=r"static key/value cache .* default cache, which grows"):
        model.generate(ids, cache_implementation="static", **settings)


def test_a_window_does_not_reach_past_the_mask() -> None:
    model = causal_model("Mistral")
    sb.sparsify(model, random_masks(model))
    with pytest.raises(ValueError, match="25 tokens, but the masks cover 24"):
        model.generate(torch.randint(2, VOCAB, (1, 6)), max_new_tokens=30, pad_token_id=0)


def test_padding_of_this_file_begins_where_it_says() -> None:
    _, real, before = left_padded()
    assert real.argmax(-1).tolist() == before and padding()[2].int().argmax() == 5
