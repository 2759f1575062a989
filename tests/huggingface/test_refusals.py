"""What `sparsify` takes and what it refuses: families of models, wrong things."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl

import sparsebert as sb
from sparsebert.integrations.huggingface import api as huggingface
from sparsebert.integrations.huggingface import position_check
from sparsebert.integrations.huggingface.attached import layer_of, sparse_modules
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.dry_run import ForwardRecord, dry_run
from tests.huggingface.families import ACCEPTED, REFUSED
from tests.huggingface.models import build, inputs, random_masks
from tests.huggingface.survey import survey

STAR = sb.patterns.star(64)

# ------------------------------------------------------------------------ families


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is needed to say so is known when `sparsify` is called."""
    judged: list[ForwardRecord] = []
    check_record = position_check.check_record
    monkeypatch.setattr(
        position_check,
        "check_record",
        lambda *x: (judged.append(x[2]), check_record(*x)),  # type: ignore[func-returns-value]
    )
    model = ACCEPTED[name]()
    sb.sparsify(model, STAR)
    attention = find_self_attention("test", model)
    assert all(layer_of(module).first_call is None for module in attention.modules.values())
    (seen,) = judged
    assert seen.whole and seen.calls.keys() == attention.modules.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """In `sparsify`, before anything is changed, and by what the model does: no name is known."""
    make, message = REFUSED[name]
    model = make()
    before = str(model), model.config.to_dict()
    with pytest.raises(ValueError, match=f"^sparsify: .*{message}"):
        sb.sparsify(model, STAR)
    assert (str(model), model.config.to_dict()) == before


def test_the_part_of_a_refused_model_is_accepted() -> None:
    git = REFUSED["git"][0]()
    sb.sparsify(git.image_encoder, STAR)
    assert len(sparse_modules(git)) == len(git.image_encoder.vision_model.encoder.layers)
    got_ocr2 = REFUSED["got-ocr2"][0]()
    sb.sparsify(got_ocr2.language_model, STAR)


def test_a_mask_cannot_be_learned_where_it_could_not_be_used() -> None:
    dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=1, seq_len=16)
    with pytest.raises(ValueError, match=r"^attach_dam: .* got 8 sequences of 16"):
        sb.attach_dam(REFUSED["swin"][0](), dam)


class _ByHand(nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.softmax(states @ states.mT, dim=-1) @ states


def test_attention_by_hand_inside_the_model_is_found() -> None:
    """It has no telling name; that it attends over whole sequences gives it away."""
    model = build("bert").bert
    model.encoder.layer[1].output.dropout = _ByHand()
    with pytest.raises(ValueError, match=r"attends in encoder\.layer\.1\.output\.dropout too"):
        sb.sparsify(model, STAR)


# ------------------------------------------------------------------------ the first call


def _qwen_vision(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Its inputs, packed patches and the grids that they come from, cannot be made up."""
    sizes: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    if name == "qwen2-vl":
        config: Any = qwen2_vl.Qwen2VLVisionConfig(**sizes, embed_dim=32, mlp_ratio=2)
        model: nn.Module = qwen2_vl.Qwen2VisionTransformerPretrainedModel(config)
    else:
        config = qwen2_5_vl.Qwen2_5_VLVisionConfig(
            **sizes,
            out_hidden_size=32,
            intermediate_size=37,
            window_size=16,
            fullatt_block_indexes=[1],
        )
        model = qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config)
    grids = torch.tensor([[1, 8, 8], [1, 4, 8]])  # two images, 64 and 32 patches
    patches = torch.randn(96, 3 * 2 * 4 * 4)
    return model.eval(), {"hidden_states": patches, "grid_thw": grids}


def test_what_cannot_be_known_before_is_checked_in_the_first_call() -> None:
    model, arguments = _qwen_vision("qwen2.5-vl")
    hooks = len(model._forward_pre_hooks) + len(model._forward_hooks)
    sb.sparsify(model, STAR)
    for _ in range(2):  # and not only once
        with pytest.raises(ValueError, match="not attend over the same sequences everywhere"):
            model(**arguments)
    with pytest.raises(ValueError, match="not attend over the same"):
        copy.deepcopy(model)(**arguments)
    sb.densify(model)
    assert len(model._forward_pre_hooks) + len(model._forward_hooks) == hooks
    model(**arguments)

    dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=4, seq_len=64)
    sb.attach_dam(model, dam)
    with pytest.raises(ValueError, match="not attend over the same"):
        model(**arguments)
    sb.detach_dam(model)
    assert len(model._forward_pre_hooks) + len(model._forward_hooks) == hooks


def test_packed_sequences_are_checked_in_every_call() -> None:
    model, arguments = _qwen_vision("qwen2-vl")
    before = model(**arguments).last_hidden_state
    sb.sparsify(model, sb.patterns.dense(64))
    for _ in range(2):
        torch.testing.assert_close(model(**arguments).last_hidden_state, before)

    model, arguments = _qwen_vision("qwen2.5-vl")
    sb.sparsify(model, STAR)
    one_window = {
        "hidden_states": arguments["hidden_states"][:16],
        "grid_thw": torch.tensor([[1, 4, 4]]),
    }
    model(**one_window)  # nothing in it shows that larger images are taken apart
    with pytest.raises(ValueError, match="not attend over the same sequences everywhere"):
        model(**arguments)


def test_models_whose_first_call_is_still_to_be_checked_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(huggingface, "check_positions", lambda *_: position_check.Checked())
    model = build("bert")
    del model.bert.encoder.layer[1:]
    sb.sparsify(model, random_masks(model))
    arguments, _ = inputs("bert")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got = compiled(**arguments).logits
        assert len(model.bert._forward_hooks) == 1  # checked when it runs as it is written
        torch.testing.assert_close(got, model(**arguments).logits)
        assert not model.bert._forward_hooks
        torch.testing.assert_close(compiled(**arguments).logits, got)


# ------------------------------------------------------------------------ the dry run


def test_the_dry_run_does_not_touch_the_model() -> None:
    model = build("bert").train()
    called: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_hook(lambda m, *_: called.append(m))
    model.bert.encoder.forward = called.append  # an instance's own, as accelerate sets it
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    state, text, names = torch.get_rng_state(), str(model), dir(model.bert)
    addresses = [x.data_ptr() for x in (*model.parameters(), *model.buffers())]
    assert dry_run(model, find_self_attention("test", model)) is not None
    assert not called
    assert torch.get_rng_state().equal(state)
    assert (str(model), dir(model.bert)) == (text, names) and model.bert.training
    assert addresses == [x.data_ptr() for x in (*model.parameters(), *model.buffers())]
    assert all(value.equal(kept[key]) for key, value in model.state_dict().items())


def test_a_rope_that_follows_the_length_keeps_its_values() -> None:
    """Its buffer is written anew in every forward; nothing fake may be left there."""
    model = transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=37,
            vocab_size=99,
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 32,
            },
        )
    ).eval()
    before = model(torch.arange(9)[None]).last_hidden_state
    sb.sparsify(model, sb.patterns.dense(64))
    torch.testing.assert_close(model(torch.arange(9)[None]).last_hidden_state, before)


def test_the_callers_modes_and_default_device_do_not_matter() -> None:
    with torch.inference_mode(), torch.device("meta"):
        model = ACCEPTED["vit"]()
        sb.sparsify(model, STAR)
    assert all(layer_of(module).first_call is None for module in sparse_modules(model))


def test_models_without_values_can_be_sparse() -> None:
    with torch.device("meta"):
        model = ACCEPTED["llama"]()
    sb.sparsify(model, STAR)
    assert all(layer_of(module).first_call is None for module in sparse_modules(model))


# ------------------------------------------------------------------------ each call


def test_tokens_that_are_dropped_in_a_call_are_not_taken_for_the_first() -> None:
    model = ACCEPTED["videomae"]()
    videos, dropped = torch.randn(2, 4, 3, 36, 36), torch.zeros(2, 32, dtype=torch.bool)
    dropped[:, ::2] = True
    sb.sparsify(model, sb.patterns.star(32))
    model(videos)
    for _ in range(2):  # also where masks replace others
        with pytest.raises(ValueError, match=r"16 tokens, but the masks are for 32, .*masked_pos"):
            model(videos, bool_masked_pos=dropped)
        sb.sparsify(model, sb.patterns.causal(32))
    sb.sparsify(model, sb.patterns.star(16))
    model(videos[:1], bool_masked_pos=dropped[:1])
    dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=4, seq_len=32)
    sb.attach_dam(sb.densify(model), dam)
    with pytest.raises(ValueError, match=r"16 tokens, but the DAM is for 32, .*masked_pos"):
        model(videos, bool_masked_pos=dropped)


def test_masks_that_replace_others_leave_no_checks_behind() -> None:
    """A mask over the image's own grid adds a look at each image."""
    model = ACCEPTED["vit"]()
    for length in (17, 17, 64):
        sb.sparsify(model, sb.patterns.star(length))
        assert len(model._forward_pre_hooks) == (length == 17)
    vision, _ = _qwen_vision("qwen2-vl")
    hooks = len(vision._forward_pre_hooks)
    for _ in range(2):
        sb.sparsify(vision, STAR)
        assert len(vision._forward_pre_hooks) == hooks + 1


# ------------------------------------------------------------------------ no model at all


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bert-base-uncased", r".bert-base-uncased.; load it first: .*AutoModel\.from_pretrained"),
        (Path("a/folder"), r"AutoModel\.from_pretrained\('a/folder'\)"),
        (
            transformers.BertModel,
            r"the class BertModel; pass BertModel\.from_pretrained\(\.\.\.\)",
        ),
        (transformers.BertConfig(), r"configuration BertConfig; .*AutoModel\.from_config"),
        (dict, "the class dict; pass an instance of a transformers model"),
        (transformers.WhisperFeatureExtractor(), "Extractor, which only prepares inputs; pass th"),
        (STAR, "got AttentionMask, a mask; the model comes first"),
        (torch.ones(4, 4, dtype=torch.bool), "got Tensor, a mask; the model comes first"),
        (None, "must be a transformers PreTrainedModel, got NoneType"),
        (nn.Linear(2, 2).state_dict(), "got OrderedDict; if it is a state_dict, build the model"),
        (torch.fx.symbolic_trace(nn.Linear(2, 2)), "is a traced model"),
        (nn.MultiheadAttention(8, 2), "SparseSelfAttention takes the place"),
        (nn.TransformerEncoderLayer(8, 2, 8), r"SparseSelfAttention takes .* torch\.nn\.Multi"),
        (
            nn.Sequential(nn.Linear(2, 2)),
            r"got Sequential; .*\.SparseSelfAttention .*\.sparse_atten",
        ),
    ],
)
def test_what_is_no_model_gets_advice(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^sparsify: .*{message}"):
        sb.sparsify(model, STAR)


def test_an_encoder_of_torch_is_refused_with_advice() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    with pytest.raises(TypeError, match=r"TransformerEncoder uses .*\.SparseSelfAttention"):
        sb.sparsify(nn.TransformerEncoder(layer, 1), STAR)


def test_what_holds_a_model_names_it(tmp_path: Path) -> None:
    model = build("bert")
    for holder in ("Trainer", "FillMaskPipeline"):
        thing = type(holder, (SimpleNamespace,), {})(model=model)
        with pytest.raises(TypeError, match=rf"got {holder}; .* its \.model \(BertForMaskedLM\)"):
            sb.sparsify(thing, STAR)
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True)
    trainer = transformers.Trainer(model=model, args=arguments)
    with pytest.raises(TypeError, match=r"got Trainer; pass the model in it, its \.model"):
        sb.sparsify(trainer, STAR)


def test_a_tokenizer_is_refused_with_advice() -> None:
    tokenizer = transformers.BertTokenizer(vocab={"[UNK]": 0, "a": 1})
    with pytest.raises(TypeError, match="BertTokenizer, which only prepares inputs; pass the mo"):
        sb.sparsify(tokenizer, STAR)


def test_a_module_around_a_model_is_as_good_as_the_model() -> None:
    """As SentenceTransformer is, and distributed wrappers."""
    model = build("bert")
    arguments, _ = inputs("bert")
    masks = random_masks(model)
    expected = sb.sparsify(copy.deepcopy(model), masks)(**arguments).logits
    wrapped = nn.Sequential(nn.ModuleDict({"auto_model": model}), nn.Linear(2, 2))
    assert sb.sparsify(wrapped, masks) is wrapped
    assert model(**arguments).logits.equal(expected)


def test_a_part_of_a_model_says_how_to_choose_it() -> None:
    with pytest.raises(TypeError, match=r"BertEncoder is a part .* modules=\[part\]"):
        sb.sparsify(build("bert").bert.encoder, STAR)


# ------------------------------------------------------------------------ all of transformers

_REASONS = (
    "written out by hand",
    "cross-attention",
    "in several models",
    "in several parts",
    "takes its sequences apart",
    "not attend over the same sequences",
    "keys or queries are pooled",
    "picks tokens at random",
    "soft-capped scores",
    "attention sinks",
    "attention to selected keys",
    "computes with the attention mask",
    "numbers a head beside queries",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_accepted_or_refused_for_a_reason() -> None:
    rows = list(survey())
    for row in rows:
        assert row.verdict != "crashed", row
        assert row.verdict != "refused" or any(reason in row.why for reason in _REASONS), row
    accepted = {row.family for row in rows if row.verdict == "accepted"}
    assert len(accepted) >= 150
    assert accepted >= {
        *("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert"),
        *("eurobert", "nomic_bert", "camembert", "vit", "deit", "dinov2", "clip_vision_model"),
        *("clip_text_model", "whisper", "bart", "t5", "gpt2", "llama", "mistral", "gemma"),
        *("qwen2", "qwen3", "phi3", "wav2vec2", "hubert", "siglip_vision_model", "beit"),
    }
