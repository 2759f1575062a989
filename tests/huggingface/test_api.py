"""sparsify and densify: forms of masks, state, refusals."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
import transformers
from torch import nn

import sparsebert as sb
from tests.huggingface.models import (
    VOCAB,
    build,
    num_modules,
    random_masks,
    run,
)

# ------------------------------------------------------------------------ forms of masks


def test_every_form_of_the_same_masks_gives_the_same_result() -> None:
    model = build("bert")
    dense = random_masks(model)
    mask = sb.AttentionMask.from_dense(dense)
    expected = run(sb.sparsify(model, dense))
    parts = [mask.layer(0), mask.layer(1)]
    for form in (mask, parts, (dense[0], mask.layer(1)), list(dense), dense.numpy()):
        assert run(sb.sparsify(model, form)).equal(expected)
    one = dense[:1, :1]
    everywhere = run(sb.sparsify(model, one.expand(2, 4, -1, -1)))
    for form in (one, one[0], one[0, 0], [one[0, 0]] * 2, sb.AttentionMask.from_dense(one[0])):
        assert run(sb.sparsify(model, form)).equal(everywhere)
    assert not everywhere.equal(expected)


def test_a_3d_tensor_is_refused_where_it_could_be_layers_or_heads() -> None:
    config = transformers.BertConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=37
    )
    model = transformers.BertModel(config)
    masks = torch.ones(2, 16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="2 layers and 2 heads: which is meant"):
        sb.sparsify(model, masks)
    sb.sparsify(model, masks[None])
    sb.sparsify(model, masks[:, None])


def test_layers_get_their_masks_in_order() -> None:
    for name in ("bert", "modernbert", "vit", "gpt2"):
        model = build(name)
        masks = sb.AttentionMask.from_dense(random_masks(model))
        sb.sparsify(model, masks)
        found = [m.mask for key, m in model.named_modules() if key.endswith(".sparsebert")]
        assert found == [masks.layer(i) for i in range(masks.num_layers)]


def test_albert_has_one_mask_for_all_its_layers() -> None:
    model = build("albert")
    assert model.config.num_hidden_layers == 3 and num_modules(model) == 1
    with pytest.raises(ValueError, match=r"3 layers but AlbertModel has 1 .* as in ALBERT"):
        sb.sparsify(model, random_masks(model).expand(3, -1, -1, -1))


def test_sparsifying_again_replaces_the_masks() -> None:
    model = build("bert")
    first, second = random_masks(model, seed=1), random_masks(model, seed=2)
    fresh = run(sb.sparsify(copy.deepcopy(model), second))
    sb.sparsify(model, first)
    with pytest.raises(TypeError):
        sb.sparsify(model, second.int())
    assert run(model).equal(run(sb.sparsify(build("bert"), first)))  # untouched by the failure
    assert run(sb.sparsify(model, second)).equal(fresh)
    sb.densify(model)
    assert run(model).equal(run(build("bert")))


# ------------------------------------------------------------------------ state


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_densify_restores_the_model(implementation: str) -> None:
    model = build("bert")
    model.set_attn_implementation(implementation)
    config, before = model.config, run(model)
    keys, modules = list(model.state_dict()), [key for key, _ in model.named_modules()]
    sb.sparsify(model, random_masks(model))
    assert list(model.state_dict()) == keys
    assert model.config._attn_implementation == "sparsebert"
    assert "sparsebert" in str(model) and "density" in str(model)
    model.config.problem_type = "regression"
    assert sb.densify(model) is model
    assert model.config is config and model.bert.config is config
    assert config._attn_implementation == implementation
    assert config.problem_type == "regression"  # what was set meanwhile stays
    assert [key for key, _ in model.named_modules()] == modules
    assert run(model).equal(before)


def test_models_of_one_configuration_are_independent() -> None:
    """They share the configuration object, and it names the attention implementation."""
    config = build("bert").config
    torch.manual_seed(0)
    first, second, third = (transformers.BertForMaskedLM(config).eval() for _ in range(3))
    dense = run(second)
    one, two = random_masks(first, seed=1), random_masks(first, seed=2)
    alone = (
        run(sb.sparsify(copy.deepcopy(first), one)),
        run(sb.sparsify(copy.deepcopy(third), two)),
    )
    sb.sparsify(first, one)
    assert run(second).equal(dense)
    sb.sparsify(third, two)
    assert (run(first).equal(alone[0]), run(third).equal(alone[1])) == (True, True)
    sb.densify(first)
    assert run(third).equal(alone[1])
    assert run(second).equal(dense)


def test_copies_and_pickles_keep_the_masks() -> None:
    model = build("bert")
    sb.sparsify(model, random_masks(model, seed=1))
    expected = run(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    pickled, copied = torch.load(file, weights_only=False), copy.deepcopy(model)
    sb.sparsify(model, random_masks(model, seed=2))
    assert not run(model).equal(expected)
    for other in (pickled, copied):
        assert run(other).equal(expected)
        sb.densify(other)
        assert run(other).equal(run(build("bert")))
    assert not run(model).equal(run(build("bert")))


def test_a_part_of_a_model_can_be_sparse() -> None:
    model = build("bert")
    masks = random_masks(model)
    expected = run(sb.sparsify(copy.deepcopy(model), masks))
    before = run(model)
    sb.sparsify(model.bert, masks)
    assert run(model).equal(expected)
    sb.densify(model)
    assert run(model).equal(before)

    wrapped = nn.ModuleDict({"encoder": model})
    sb.sparsify(wrapped, masks)
    assert run(model).equal(expected)


def test_an_attention_implementation_without_masks_says_so() -> None:
    model = build("bert")
    model.set_attn_implementation("sparsebert")
    with pytest.raises(ValueError, match=r"BertSelfAttention has no mask.*call sparsebert\.spars"):
        run(model)


# ------------------------------------------------------------------------ refusals


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("masks", "kind", "message"),
    [
        (ones(3, 4, 24, 24), ValueError, "3 layers but BertModel has 2 attention modules"),
        ([ones(24, 24)] * 3, ValueError, "3 masks for 2 attention modules of BertModel"),
        ([ones(24, 24)], ValueError, "1 masks for 2 .* single mask, not in a list, for all"),
        ([ones(2, 4, 24, 24)] * 2, ValueError, r"masks\[0\] has 2 layers; .* one layer"),
        ([ones(24, 24), ones(20, 20)], ValueError, r"masks\[1\] is 20 x 20 but masks\[0\] is 24"),
        (ones(1, 3, 24, 24), ValueError, "masks has 3 heads but BertModel has 4"),
        ([ones(24, 24), ones(3, 24, 24)], ValueError, r"masks\[1\] has 3 heads but"),
        (ones(24, 20), ValueError, "masks are 24 x 20, but .* square"),
        (ones(24, 24).int(), TypeError, r"a tensor torch.int32; convert it, .* mask.bool\(\)"),
        (ones(24, 24).float(), TypeError, "a tensor torch.float32"),
        ("star", TypeError, "must be an AttentionMask or a bool tensor, .* got str"),
        (torch.zeros(24, 24).fill_diagonal_(-torch.inf), TypeError, r"additive mask: mask == 0$"),
        ([torch.zeros(24, 24).fill_diagonal_(-1e9)] * 2, TypeError, r"masks\[0\] .* mask == 0$"),
        (ones(24, 24).numpy() * 1.0, TypeError, "mask != 0 if 1 means may attend"),
        (lambda b, h, q, k: q >= k, TypeError, "from_mask_mod"),
        (None, TypeError, "got NoneType; sparsebert.patterns"),
        (ones(2, 24).long(), TypeError, "mask of padding, .* in the model's call"),
        (ones(2, 24), ValueError, "square .* mask of padding, .* as attention_mask"),
        (ones(5, 4, 24, 24), ValueError, r"\[B, H, N, N\], is not static: .* as attention_mask"),
        (ones(24), ValueError, "must be one of"),
    ],
)
def test_bad_masks(masks: object, kind: type[Exception], message: str) -> None:
    model = build("bert")
    with pytest.raises(kind, match=message):
        sb.sparsify(model, masks)  # type: ignore[arg-type]
    assert model.config._attn_implementation == "sdpa"


def test_bad_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'cuda'"):
        sb.sparsify(build("bert"), ones(24, 24), backend="cuda")


def test_long_sequences() -> None:
    model = sb.sparsify(build("bert"), ones(24, 24))
    with pytest.raises(ValueError, match="25 tokens, but the masks cover 24; truncate"):
        model(torch.ones(1, 25, dtype=torch.long))


_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": VOCAB,
}


@pytest.mark.parametrize("name", ["MPNet", "DebertaV2", "RoFormer", "MegatronBert"])
def test_hand_written_attention_is_refused_by_name(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**_SIZES)
    model = getattr(transformers, f"{name}Model")(config)
    with pytest.raises(ValueError, match=f"{name}Model has attention of its own"):
        sb.sparsify(model, ones(24, 24))


def test_models_that_cannot_be_sparse() -> None:
    with pytest.raises(TypeError, match="must be a transformers PreTrainedModel, got Linear"):
        sb.sparsify(nn.Linear(2, 2), ones(24, 24))
    with pytest.raises(TypeError, match="pass the whole model"):
        sb.sparsify(build("bert").bert.encoder, ones(24, 24))
    decoder = transformers.BertConfig(**_SIZES, is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="BertModel has cross-attention"):
        sb.sparsify(transformers.BertModel(decoder), ones(24, 24))
    for name in ("densify", "save_masks"):
        arguments = (".",) if name == "save_masks" else ()
        with pytest.raises(ValueError, match=f"{name}: BertForMaskedLM has no sparse masks"):
            getattr(sb, name)(build("bert"), *arguments)


def test_two_encoders_in_one_model() -> None:
    tower = {**_SIZES, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**tower, "max_position_embeddings": 24},
        vision_config={**tower, "image_size": 36, "patch_size": 9},
    )
    model = transformers.CLIPModel(config).eval()
    with pytest.raises(ValueError, match=r"several models \(text_model.*, vision_model.*\)"):
        sb.sparsify(model, ones(24, 24))
    pixels, ids = torch.randn(2, 3, 36, 36), torch.randint(2, VOCAB, (2, 9))
    with torch.no_grad():
        dense = model(input_ids=ids, pixel_values=pixels)
        sb.sparsify(model.vision_model, sb.patterns.star(17))
        out = model(input_ids=ids, pixel_values=pixels)
        assert out.text_embeds.equal(dense.text_embeds)
        assert not out.image_embeds.equal(dense.image_embeds)
        # CLIP's text encoder is causal.
        sb.sparsify(model.text_model, ones(24, 24))
        torch.testing.assert_close(
            model(input_ids=ids, pixel_values=pixels).text_embeds, dense.text_embeds
        )
        sb.densify(model)
        again = model(input_ids=ids, pixel_values=pixels)
    assert again.logits_per_image.equal(dense.logits_per_image)


def test_output_attentions_in_the_configuration_is_refused() -> None:
    model = build("bert")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="pass output_attentions=True to the calls"):
        sb.sparsify(model, ones(24, 24))


@pytest.mark.parametrize(
    ("argument", "what"), [("softcap", "soft-capped scores"), ("s_aux", "attention sinks")]
)
def test_arguments_that_a_mask_cannot_follow_are_refused(argument: str, what: str) -> None:
    attention = sb.sparsify(build("bert"), ones(24, 24)).bert.encoder.layer[0].attention.self
    with pytest.raises(ValueError, match=re.escape(f"uses {what} ({argument})")):
        attention(torch.randn(1, 5, 32), **{argument: torch.ones(4)})


def test_masks_of_other_shapes_are_refused() -> None:
    model = sb.sparsify(build("bert"), ones(24, 24))
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, N\].* \[2, 5, 5\]"):
        model(torch.ones(2, 5, dtype=torch.long), attention_mask=ones(2, 5, 5))
    attention = model.bert.encoder.layer[0].attention.self
    states = torch.randn(1, 5, 32)
    for mask in (ones(1, 5, 5), ones(1, 1, 5, 5).int()):
        with pytest.raises(ValueError, match=r"which is neither \[B, M\] nor \[B, 1, N, M\]"):
            attention(states, attention_mask=mask)
    with pytest.raises(ValueError, match=r"shape \[B=1, M=5\], .* got \[1, 4\]"):
        attention(states, attention_mask=ones(1, 4))
    gpt2 = sb.sparsify(build("gpt2"), ones(24, 24))
    cache = gpt2(torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    token = torch.ones(1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"cached keys included, got \[1, 1\]"):
        gpt2(token, attention_mask=token, past_key_values=cache)
