"""Tiny random models of many families, and what `sparsify` should make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

WIDTH, HEADS, LAYERS = 32, 4, 2

_TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": WIDTH,
    "vocab_size": 99,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 37),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
}
_IMAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
    "image_size": 36,
    "patch_size": 9,
}
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2}
_SPEECH: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "vocab_size": 99,
}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
_EXPERTS: dict[str, Any] = {
    **_DECODER,
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}


def _make(name: str, config: str | None = None, **sizes: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        prefix = name.removesuffix("Model").removesuffix("EncoderModel")
        cls = getattr(transformers, config or f"{prefix}Config")
        return getattr(transformers, name)(cls(**sizes)).eval()

    return build


ACCEPTED: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": _make("BertModel", **_TEXT),
    "bert classifier": _make("BertForSequenceClassification", "BertConfig", **_TEXT),
    "roberta": _make("RobertaModel", **_TEXT),
    "xlm-roberta": _make("XLMRobertaModel", **_TEXT),
    "camembert": _make("CamembertModel", **_TEXT),
    "electra": _make("ElectraModel", **_TEXT, embedding_size=16),
    "distilbert": _make(
        "DistilBertModel", dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=37, vocab_size=99
    ),
    "albert": _make("AlbertModel", **_TEXT, embedding_size=16),
    "modernbert": _make(
        "ModernBertModel", **_TEXT, local_attention=8, cls_token_id=1, sep_token_id=1
    ),
    "eurobert": _make("EuroBertModel", **_DECODER),
    "nomic": _make("NomicBertModel", **_TEXT),
    "ernie": _make("ErnieModel", **_TEXT),
    "layoutlm": _make("LayoutLMModel", **_TEXT),
    "t5": _make(
        "T5Model",
        d_model=WIDTH,
        d_kv=8,
        num_heads=HEADS,
        num_layers=LAYERS,
        d_ff=37,
        vocab_size=99,
    ),
    "bart": _make("BartModel", **_SEQ2SEQ, max_position_embeddings=64),
    "whisper": _make("WhisperModel", **_SEQ2SEQ, num_mel_bins=8, max_source_positions=20),
    "gpt2": _make("GPT2Model", n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=99),
    "llama": _make("LlamaModel", **_DECODER),
    "mistral": _make("MistralModel", **_DECODER, sliding_window=4),
    "qwen2": _make("Qwen2Model", **_DECODER),
    "qwen3": _make("Qwen3Model", **_DECODER, head_dim=8),
    "gemma": _make("GemmaModel", **_DECODER, head_dim=8),
    "gemma2 without soft-capping": _make(
        "Gemma2Model", **_DECODER, head_dim=8, attn_logit_softcapping=None
    ),
    "gemma3": _make("Gemma3TextModel", **_DECODER, head_dim=8, sliding_window=4),
    "mixtral": _make("MixtralModel", **_EXPERTS),
    "qwen3-moe": _make("Qwen3MoeModel", **_EXPERTS, head_dim=8),
    "opt": _make(
        "OPTModel",
        **{k: v for k, v in _TEXT.items() if k != "intermediate_size"},
        ffn_dim=37,
        word_embed_proj_dim=WIDTH,
    ),
    "vit": _make("ViTModel", **_IMAGE),
    "vit classifier": _make("ViTForImageClassification", "ViTConfig", **_IMAGE),
    "deit": _make("DeiTModel", **_IMAGE),
    "beit": _make("BeitModel", **_IMAGE),
    "dinov2": _make("Dinov2Model", **_IMAGE),
    "clip vision": _make("CLIPVisionModel", **_IMAGE),
    "clip text": _make("CLIPTextModel", **_TEXT),
    "siglip vision": _make("SiglipVisionModel", **_IMAGE),  # its head is cross-attention
    "videomae": _make("VideoMAEModel", **_IMAGE, num_frames=4),
    "audio spectrogram": _make("ASTModel", **_IMAGE, max_length=40, num_mel_bins=16),
    "wav2vec2": _make("Wav2Vec2Model", **_SPEECH),
    "hubert": _make("HubertModel", **_SPEECH),
    "patchtst": _make(
        "PatchTSTModel",
        num_input_channels=3,
        context_length=24,
        patch_length=4,
        patch_stride=4,
        d_model=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        ffn_dim=37,
    ),
}


ACCEPTED["patchtst, values masked at random"] = _make(
    "PatchTSTForPretraining",
    "PatchTSTConfig",
    num_input_channels=3,
    context_length=24,
    patch_length=4,
    patch_stride=4,
    d_model=WIDTH,
    num_attention_heads=HEADS,
    num_hidden_layers=LAYERS,
    ffn_dim=37,
    do_mask_input=True,
)


def _git() -> PreTrainedModel:
    return _make("GitModel", **_TEXT, vision_config=_IMAGE)()


def _clap() -> PreTrainedModel:
    sound = {
        "spec_size": 32,
        "num_mel_bins": 8,
        "patch_size": 4,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "hidden_size": WIDTH,
    }
    return _make("ClapModel", text_config=_TEXT, audio_config=sound, projection_dim=16)()


def _got_ocr2() -> PreTrainedModel:
    vision = {
        "hidden_size": WIDTH,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "image_size": 32,
        "patch_size": 8,
        "window_size": 2,
        "mlp_dim": 37,
    }
    text = {**_DECODER, "model_type": "qwen2"}
    return _make("GotOcr2Model", text_config=text, vision_config=vision)()


def _with_swin(name: str) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        backbone = transformers.SwinConfig(
            **{**_SWIN, "depths": [1] * 4, "num_heads": [2] * 4},
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        sizes = {
            **dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), WIDTH),
            **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
            **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 37),
            "num_attention_heads": HEADS,
            "num_queries": 5,
        }
        if name == "OneFormer":
            sizes = {**sizes, "conv_dim": WIDTH, "mask_dim": WIDTH, "is_training": False}
        return _make(f"{name}Model", **sizes, backbone_config=backbone)()

    return build


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    # Attention that the masks would not reach.
    "git": (_git, r"several parts: masks would reach GitVisionModel .* not GitSelfAttention"),
    "clap": (_clap, r"several parts: masks would reach ClapTextModel .* not ClapAudio"),
    "got-ocr2": (_got_ocr2, r"several parts: masks would reach Qwen2Model .* not GotOcr2Vision"),
    "mask2former": (_with_swin("Mask2Former"), "several parts: masks would reach Swin"),
    "oneformer": (_with_swin("OneFormer"), "several parts: masks would reach Swin"),
    # Sequences that are not the model's.
    "swin": (_make("SwinModel", **_SWIN), "of a batch of 2, .* got 8 sequences of 16"),
    "swin of one layer": (
        _make("SwinModel", **{**_SWIN, "depths": [1], "num_heads": [2]}),
        "of a batch of 2, .* got 8 sequences of 16",
    ),
    "sam3": (
        _make("Sam3ViTModel", **_IMAGE, window_size=2, global_attn_indexes=[1]),
        "of a batch of 2, .* got 8 sequences of 4",
    ),
    "lw-detr": (
        _make(
            "LwDetrViTBackbone",
            "LwDetrViTConfig",
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=32,
            pretrain_image_size=32,
            patch_size=4,
            num_windows=4,
            num_windows_side=2,
            window_block_indices=[0],
            out_indices=[1, 2],
        ),
        "sequences",
    ),
    "patchtst across channels": (
        _make(
            "PatchTSTModel",
            num_input_channels=3,
            context_length=24,
            patch_length=4,
            patch_stride=4,
            d_model=WIDTH,
            num_attention_heads=HEADS,
            num_hidden_layers=LAYERS,
            ffn_dim=37,
            channel_attention=True,
        ),
        "sequences",
    ),
    "pixtral": (
        _make("PixtralVisionModel", **{**_IMAGE, "num_hidden_layers": 1}, head_dim=8),
        "of a batch of 2, .* got 1 sequences of 32",
    ),
    "vit-mae": (_make("ViTMAEModel", **_IMAGE), "picks tokens at random"),
    "vit-mae that drops nothing": (
        _make("ViTMAEModel", **_IMAGE, mask_ratio=0.0),
        "picks tokens at random",
    ),
    # Shapes that no mask of self-attention has.
    "segformer": (
        _make(
            "SegformerModel",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[4, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[2, 2],
            mlp_ratios=[1, 1],
            image_size=32,
        ),
        "queries and .* keys in .* pooled",
    ),
    "sam2-hiera": (
        _make(
            "Sam2HieraDetModel",
            hidden_size=16,
            num_attention_heads=1,
            image_size=[64, 64],
            window_positional_embedding_background_size=[4, 4],
            blocks_per_stage=[1, 1],
            embed_dim_per_stage=[16, 32],
            num_attention_heads_per_stage=[1, 2],
            window_size_per_stage=[4, 4],
            global_attention_blocks=[],
            num_query_pool_stages=1,
        ),
        "sequences|queries and",
    ),
    "deepseek-v3": (
        _make(
            "DeepseekV3Model",
            **{**_TEXT, "num_key_value_heads": HEADS},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
            first_k_dense_replace=LAYERS,
        ),
        "values of 16 numbers a head beside queries of 24",
    ),
    # Scores that no mask follows.
    "gemma2": (_make("Gemma2Model", **_DECODER, head_dim=8), "soft-capped scores"),
    "gpt-oss": (_make("GptOssModel", **_EXPERTS, head_dim=8), "attention sinks"),
    # Masks that the model makes of transformers' in every layer.
    "doge": (_make("DogeModel", **_DECODER, head_dim=8), "computes with the attention mask"),
}
