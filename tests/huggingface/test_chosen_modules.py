"""`sparsify(modules=...)`, and `sparsify` for models that are sparse already."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsebert as sb
from sparsebert.integrations.huggingface.attached import LayerMask, layer_of, sparse_modules
from sparsebert.integrations.huggingface.discovery import find_self_attention
from tests.huggingface.families import ACCEPTED, REFUSED
from tests.huggingface.models import assert_equal_in_fp64, build, inputs, judged, random_masks

STAR = sb.patterns.star(64)

# ------------------------------------------------------------------------ chosen modules


@pytest.mark.parametrize("padded", [True, False])
def test_chosen_modules_are_sparse_and_the_rest_is_dense(padded: bool) -> None:
    for name in ("bert", "modernbert", "gpt2"):
        model = build(name).double()
        arguments, real = inputs(name, padded=padded)
        attention = find_self_attention("test", model)
        first, *others = attention.modules
        masks = random_masks(model)
        masks[1:] = True
        expected = judged(model, masks)(**arguments).logits
        before = model(**arguments).logits
        sb.sparsify(model, masks[0], modules=[attention.modules[first]])
        assert [m for m in model.modules() if isinstance(m, LayerMask)] == [
            layer_of(attention.modules[first])
        ]
        assert_equal_in_fp64(model(**arguments).logits[real], expected[real])
        assert not torch.allclose(before[real], expected[real])
        sb.densify(model)
        assert model(**arguments).logits.equal(before)
        assert others


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_the_rest_of_a_decoder_keeps_its_rules_with_cached_keys(name: str) -> None:
    """Mistral's window is four tokens here; one sequence begins with padding."""
    model = ACCEPTED[name]()
    ids = torch.randint(2, 99, (2, 12))
    real = torch.ones(2, 12, dtype=torch.long)
    real[1, :3] = 0

    def steps() -> torch.Tensor:
        cache, hidden = None, []
        for start, stop in ((0, 7), (7, 8), (8, 12)):
            out = model(ids[:, start:stop], attention_mask=real[:, :stop], past_key_values=cache)
            cache = out.past_key_values
            hidden.append(out.last_hidden_state)
        return torch.cat(hidden, dim=1)[real.bool()]

    with torch.no_grad():
        before = steps()
        first, *_ = find_self_attention("test", model).modules
        sb.sparsify(model, sb.patterns.dense(64), modules=first)
        torch.testing.assert_close(steps(), before)


def test_ways_to_choose_modules() -> None:
    model = build("bert")
    names = list(find_self_attention("test", model).modules)
    layers = model.bert.encoder.layer
    for chosen, expected in (
        (names[1], names[1:]),
        (names, names),
        ([layers[1]], names[1:]),
        (layers[0].attention, names[:1]),
        (["bert.encoder.layer.1", layers[0]], names),
        (iter(["bert"]), names),
    ):
        sb.sparsify(model, STAR, modules=chosen)
        sparse = {id(module) for module in sparse_modules(model)}
        assert [key for key, module in model.named_modules() if id(module) in sparse] == expected
        sb.densify(model)
    with pytest.raises(ValueError, match="2 masks for 1 attention modules"):
        sb.sparsify(model, [STAR, STAR], modules=names[0])


def test_masks_of_chosen_modules_are_not_saved_as_if_they_were_the_models(tmp_path: Path) -> None:
    model = sb.sparsify(build("bert"), STAR, modules="bert.encoder.layer.1")
    with pytest.raises(ValueError, match=r"only chosen modules have masks .*AttentionMask\.save"):
        sb.save_masks(model, tmp_path)
    sb.sparsify(model, STAR)
    sb.save_masks(model, tmp_path)


def test_groups_of_modules_have_masks_of_their_own() -> None:
    model = build("bert")
    arguments, _ = inputs("bert")
    dense = model(**arguments).logits
    masks = random_masks(model)
    expected = sb.sparsify(copy.deepcopy(model), masks)(**arguments).logits
    first, second = find_self_attention("test", model).modules
    sb.sparsify(model, ~masks[0], modules=first)
    sb.sparsify(model, masks[1], modules=second)
    sb.sparsify(model, masks[0], modules=first)  # replaces its mask, and only that
    torch.testing.assert_close(model(**arguments).logits, expected)
    sb.sparsify(model, list(masks), modules=[first, second])
    assert model(**arguments).logits.equal(expected)
    sb.sparsify(model, ~masks)
    sb.sparsify(model, masks[1], modules=second)  # of a model that is sparse as a whole
    sb.sparsify(model, masks[0], modules=first)
    assert model(**arguments).logits.equal(expected)
    sb.densify(model)
    assert model.config._attn_implementation == "sdpa"
    assert model(**arguments).logits.equal(dense)


def test_chosen_modules_of_a_model_that_is_refused() -> None:
    """The last stage of this Swin is one window, which is the whole image."""
    swin = REFUSED["swin"][0]()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = swin(pixels).last_hidden_state
        sb.sparsify(swin, sb.patterns.dense(16), modules="encoder.layers.1")
        torch.testing.assert_close(swin(pixels).last_hidden_state, before)
        sb.sparsify(swin, sb.patterns.star(16), modules="encoder.layers.1")
        assert (swin(pixels).last_hidden_state - before).abs().max() > 1e-4
    clap = REFUSED["clap"][0]()
    sb.sparsify(clap, STAR, modules="text_model")
    decoder = ACCEPTED["bart"]()
    sb.sparsify(decoder, STAR, modules=[f"decoder.layers.{i}.self_attn" for i in range(2)])
    assert len(sparse_modules(decoder.decoder)) == 2


@pytest.mark.parametrize(
    ("modules", "kind", "message"),
    [
        ("bert.encoder.layer.7", ValueError, r"no such module; .* for example 'bert\.encoder"),
        (["bert.embeddings"], ValueError, r"'bert\.embeddings', in which no attention goes"),
        (nn.Linear(2, 2), ValueError, "a Linear that is no part of BertForMaskedLM"),
        ([], ValueError, "modules is empty"),
        ([0], TypeError, "attention modules of the model or their names, got int"),
    ],
)
def test_bad_choices(modules: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^sparsify: .*{message}"):
        sb.sparsify(build("bert"), STAR, modules=modules)


def test_choices_that_cannot_be_run() -> None:
    bart = ACCEPTED["bart"]()
    with pytest.raises(ValueError, match=r"cross-attention \(decoder\.layers\.0\.encoder_attn\)"):
        sb.sparsify(bart, STAR, modules="decoder.layers.0")
    with pytest.raises(ValueError, match=r"in several models .*; call it once for each"):
        sb.sparsify(bart, STAR, modules=["encoder", "decoder.layers.0.self_attn"])


# ------------------------------------------------------------------------ sparse already


def test_a_part_of_a_sparse_model_can_be_sparsified_again_and_the_whole_densified() -> None:
    model = build("bert")
    config = model.config
    arguments, _ = inputs("bert")
    dense = model(**arguments).logits
    masks = random_masks(model)
    expected = sb.sparsify(copy.deepcopy(model), masks)(**arguments).logits
    sb.sparsify(model, ~masks)
    sb.sparsify(model.bert, masks)
    assert model(**arguments).logits.equal(expected)
    assert model.config is model.bert.config
    sb.densify(model)
    assert model.config is model.bert.config is config
    assert model(**arguments).logits.equal(dense)

    sb.sparsify(model.bert, ~masks)  # and the other way round
    sb.sparsify(model, masks)
    assert model(**arguments).logits.equal(expected)
    sb.densify(model)
    assert model.config is model.bert.config is config
    assert model(**arguments).logits.equal(dense)


@pytest.mark.parametrize("modules", [None, "encoder.layer.0"])
def test_a_sparse_part_follows_the_attention_that_the_whole_is_set_to(modules: Any) -> None:
    """They share a configuration, of which only the part's own copy is ours to restore."""
    model = build("bert")
    arguments, _ = inputs("bert")
    dense = model(**arguments).logits
    sb.sparsify(model.bert, random_masks(model)[0], modules=modules)
    sparse = model(**arguments).logits
    with pytest.warns(UserWarning, match="now runs 'eager' attention, dense"):
        model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**arguments).logits, dense)
    model.set_attn_implementation("sparsebert")
    assert model(**arguments).logits.equal(sparse)
    sb.densify(model)
    assert model.config._attn_implementation == "sdpa"
    assert model(**arguments).logits.equal(dense)


def test_layers_that_are_dropped_from_a_sparse_model(tmp_path: Path) -> None:
    model = build("bert")
    arguments, _ = inputs("bert")
    masks = random_masks(model)
    expected = copy.deepcopy(model)
    del expected.bert.encoder.layer[0]
    sb.sparsify(expected, masks[1:])
    sb.sparsify(model, masks)
    del model.bert.encoder.layer[0]
    assert model(**arguments).logits.equal(expected(**arguments).logits)
    sb.save_masks(model, tmp_path)
    with pytest.raises(ValueError, match="2 layers but BertModel has 1 attention modules"):
        sb.sparsify(model, masks)
    sb.sparsify(model, STAR)
    sb.load_masks(model, tmp_path)
    assert model(**arguments).logits.equal(expected(**arguments).logits)
