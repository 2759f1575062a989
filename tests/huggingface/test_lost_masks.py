"""Where masks could be lost, or lie unused, without a word: files, other attention, layers."""

from __future__ import annotations

import copy
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import sparsebert as sb
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.lost_masks import (
    MasksNotSavedWarning,
    MasksNotUsedWarning,
)
from tests.huggingface.models import MASK_LENGTH, VOCAB, build, inputs, random_masks, run


def sparse_bert() -> transformers.PreTrainedModel:
    model = build("bert")
    return sb.sparsify(model, random_masks(model))


# ------------------------------------------------------------------------ saved without masks


def test_saving_a_sparse_model_without_its_masks_warns(tmp_path: Path) -> None:
    model = sparse_bert()
    for _ in range(2):  # every time
        with pytest.warns(
            MasksNotSavedWarning, match=r"save_masks\(model, '.*'\), and after from_"
        ):
            model.save_pretrained(tmp_path)
    with pytest.warns(MasksNotSavedWarning):
        model.bert.save_pretrained(tmp_path / "body")
    dense = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense.save_pretrained(tmp_path)
        sb.save_masks(model, tmp_path)
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path / "worker", is_main_process=False)
    assert run(sb.load_masks(dense.eval(), tmp_path)).equal(run(model))
    sb.sparsify(model, sb.patterns.star(MASK_LENGTH))  # the masks in the folder are others now
    with pytest.warns(MasksNotSavedWarning):
        model.save_pretrained(tmp_path)


def test_checkpoints_of_a_trainer_warn(tmp_path: Path) -> None:
    model = sparse_bert()
    arguments, _ = inputs("bert", padded=False)
    rows = [{name: value[i] for name, value in arguments.items()} for i in range(2)]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    with pytest.warns(MasksNotSavedWarning, match="checkpoint-1"):
        transformers.Trainer(model, settings, train_dataset=rows).train()


class Wrapper(nn.Module):
    """As PEFT's models are: a module around one, with a way to save of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> str:
        return "saved"


def test_wrappers_that_save_warn_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Around(Wrapper): ...

    class Later(Wrapper): ...

    wrapped = Around(build("bert"))
    assert Later(build("bert")).save_pretrained(str(tmp_path)) == "saved"
    peft = types.ModuleType("peft")
    peft.PeftModel = Later  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peft", peft)
    sb.sparsify(wrapped, sb.patterns.star(MASK_LENGTH))
    with pytest.warns(MasksNotSavedWarning, match="Around is sparse"):
        assert wrapped.save_pretrained(str(tmp_path)) == "saved"
    with pytest.warns(MasksNotSavedWarning, match="Later is sparse"):
        Later(wrapped.model).save_pretrained(save_directory=str(tmp_path))


# ------------------------------------------------------------------------ another attention


def test_another_attention_is_told_and_can_be_undone(tmp_path: Path) -> None:
    model = sparse_bert()
    sparse, dense = run(model), run(build("bert"))
    with pytest.warns(
        MasksNotUsedWarning, match=r"now runs 'eager' attention, dense.*'sparsebert'"
    ):
        model.set_attn_implementation("eager")
    torch.testing.assert_close(run(model), dense)
    assert "NOT USED: the model is set to 'eager' attention" in str(model)
    with pytest.raises(ValueError, match=r"does not use them: .*'eager'.*set_attn_implementation"):
        sb.save_masks(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_attn_implementation("sparsebert")
    assert run(model).equal(sparse) and "NOT USED" not in str(model)
    sb.save_masks(model, tmp_path)


@pytest.mark.filterwarnings(
    "ignore::sparsebert.integrations.huggingface.lost_masks.MasksNotUsedWarning"
)
def test_another_attention_survives_densify_and_a_new_sparsify() -> None:
    model = sparse_bert()
    model.set_attn_implementation("eager")
    again = sb.sparsify(copy.deepcopy(model), random_masks(model))
    assert run(again).equal(run(sparse_bert())) and "NOT USED" not in str(again)
    for sparse in (model, again):
        sb.densify(sparse)
        assert sparse.config._attn_implementation == "eager"
        assert sparse.bert.config._attn_implementation == "eager"


def test_layers_with_a_configuration_of_their_own_follow() -> None:
    """As in an EncoderDecoderModel: transformers sets the model's configuration alone."""
    model = build("bert")
    layers = copy.deepcopy(model.config)
    for module in find_self_attention("test", model).modules.values():
        module.config = layers
    arguments, _ = inputs("bert")
    dense = model(**arguments).logits
    sparse = sb.sparsify(model, random_masks(model))(**arguments).logits
    with pytest.warns(UserWarning, match="now runs 'sdpa' attention, dense"):
        model.set_attn_implementation("sdpa")
    assert model(**arguments).logits.equal(dense)
    model.set_attn_implementation("sparsebert")
    assert model(**arguments).logits.equal(sparse)
    assert sb.densify(model)(**arguments).logits.equal(dense)


def test_a_dam_that_is_not_used_is_told() -> None:
    """It would learn nothing, and nobody would know."""
    model = sb.attach_dam(build("bert"), sb.DifferentiableAttentionMask(1, 4, MASK_LENGTH))
    learned = run(model.eval())
    with pytest.warns(
        MasksNotUsedWarning, match=r"has a DAM, .*'sdpa'.*'sparsebert_dam'.*detach_"
    ):
        model.set_attn_implementation("sdpa")
    assert "NOT USED: the model is set to 'sdpa' attention" in str(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_attn_implementation("sparsebert_dam")
    assert "NOT USED" not in str(model) and run(model).equal(learned)
    with pytest.raises(ValueError, match=r"model\(\.\.\., output_attentions=True\)"):
        model.config.output_attentions = True


def test_output_attentions_in_the_configuration_gets_our_advice() -> None:
    model = sparse_bert()
    with pytest.raises(ValueError, match=r"model\(\.\.\., output_attentions=True\)"):
        model.config.output_attentions = True
    assert not model.config.output_attentions
    assert len(model(**inputs("bert")[0], output_attentions=True).attentions) == 2
    model.config.output_attentions = False
    dense = build("bert").config
    with pytest.raises(ValueError, match="set it to 'eager' instead"):  # transformers' own
        dense.output_attentions = True


# ------------------------------------------------------------------------ densify


def test_densify_after_loading_with_our_attention(tmp_path: Path) -> None:
    model = sparse_bert()
    sb.save_masks(model, tmp_path)
    model.save_pretrained(tmp_path)
    loaded = transformers.BertForMaskedLM.from_pretrained(
        tmp_path, attn_implementation="sparsebert"
    ).eval()
    sb.load_masks(loaded, tmp_path)
    assert run(loaded).equal(run(model))
    sb.densify(loaded)
    assert loaded.config._attn_implementation == "sdpa"
    assert run(loaded).equal(run(build("bert")))


def test_a_decoder_beside_the_sparse_encoder_runs_after_loading_with_our_attention() -> None:
    config = transformers.T5Config(
        d_model=16, d_kv=8, num_heads=2, num_layers=1, d_ff=16, vocab_size=VOCAB
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.set_attn_implementation("sparsebert")
    ids = torch.arange(8)[None]
    with pytest.raises(ValueError, match="has no mask"):
        model(ids, decoder_input_ids=ids)
    sb.sparsify(model, sb.patterns.star(8))
    model(ids, decoder_input_ids=ids)
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_a_model_of_a_sparse_models_configuration_does_not_make_that_dense() -> None:
    first = sparse_bert()
    expected = run(first)
    second = transformers.BertForMaskedLM(first.config).eval()
    sb.sparsify(second, sb.patterns.star(MASK_LENGTH))
    assert run(first).equal(expected)
    sb.densify(second)
    run(second)
    assert run(first).equal(expected)


# ------------------------------------------------------------------------ lost layers


@pytest.mark.parametrize("kept", [[0], [1], [1, 0]])
def test_masks_of_the_layers_that_are_left_are_saved(kept: list[int], tmp_path: Path) -> None:
    model = build("bert")
    masks = sb.AttentionMask.from_dense(random_masks(model), provenance={"from": "a test"})
    sb.sparsify(model, masks)
    model.bert.encoder.layer = nn.ModuleList(model.bert.encoder.layer[i] for i in kept)
    sb.save_masks(model, tmp_path)
    again = sb.load_masks(sb.densify(copy.deepcopy(model)), tmp_path)
    assert run(again).equal(run(model))
    saved = sb.AttentionMask.load(tmp_path / "sparsebert_masks.safetensors")
    assert saved == sb.AttentionMask.stack_layers([masks.layer(i) for i in kept])


def test_one_mask_for_all_layers_stays_one(tmp_path: Path) -> None:
    model = sb.sparsify(build("bert"), sb.patterns.star(MASK_LENGTH))
    del model.bert.encoder.layer[0]
    sb.save_masks(model, tmp_path)
    saved = sb.AttentionMask.load(tmp_path / "sparsebert_masks.safetensors")
    assert saved.num_layers == 1 and saved.provenance["pattern"] == "star"
    sb.load_masks(model, tmp_path)


def test_layers_without_a_mask_are_not_saved_as_if_they_had_one(tmp_path: Path) -> None:
    model = sparse_bert()
    model.bert.encoder.layer[1] = build("bert").bert.encoder.layer[1]
    with pytest.raises(ValueError, match=r"layer\.1\.\S+ has no mask, though others have; call"):
        sb.save_masks(model, tmp_path)
    with pytest.warns(MasksNotSavedWarning):
        model.save_pretrained(tmp_path)
