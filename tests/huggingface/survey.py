"""What `sparsify` makes of every model family in transformers, with tiny random configurations.

`python tests/huggingface/survey.py` prints a table; a slow test looks at the same rows.
Configurations are made smaller by the usual names of their sizes; a family whose model cannot be
built like that (or not without a library that is not here) is left out.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel, logging

from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.position_check import check_positions

_SIZES: dict[int, str] = {
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth layers "
    "num_encoder_layers num_decoder_layers",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_key_value_heads "
    "decoder_attention_heads attention_heads num_kv_heads num_experts num_local_experts "
    "n_routed_experts",
    8: "head_dim d_kv",
    32: "hidden_size d_model n_embd dim embed_dim encoder_hidden_size decoder_hidden_size",
    64: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim d_inner n_inner mlp_dim "
    "moe_intermediate_size shared_expert_intermediate_size hidden_dim",
    99: "vocab_size",
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}


@dataclasses.dataclass(frozen=True)
class Row:
    """One family, and the error's message, if there was one."""

    family: str
    verdict: Literal["accepted", "first call", "refused", "crashed"]
    why: str = ""


def survey(families: Iterable[str] = CONFIG_MAPPING) -> Iterator[Row]:
    """A row for each family whose base model can be built small."""
    for family in families:
        model = _tiny(family)
        if model is None:
            continue
        try:
            attention = find_self_attention("sparsify", model)
            enough = check_positions("sparsify", model, attention).enough
            yield Row(family, "accepted" if enough else "first call")
        except ValueError as error:
            yield Row(family, "refused", str(error))
        except Exception as error:
            yield Row(family, "crashed", repr(error))


def _tiny(family: str) -> PreTrainedModel | None:
    try:
        config = CONFIG_MAPPING[family]()
        cls: Any = MODEL_MAPPING[type(config)]
        _shrink(config)
        with torch.device("meta"):
            model: PreTrainedModel = (cls[0] if isinstance(cls, tuple) else cls)(config)
    except Exception:  # sizes that do not fit together, or a library that is not here
        return None
    return model


def _shrink(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif name in _SMALL and type(value) is int:
            setattr(config, name, min(value, _SMALL[name]))
        elif name.endswith("token_id") and type(value) is int:
            setattr(config, name, min(value, 1))
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(getattr(config, "layer_types", None), list) and layers:
        kinds = list(dict.fromkeys(config.layer_types))
        config.layer_types = (kinds + kinds)[:layers]


def main() -> None:
    """Print the table."""
    counts: collections.Counter[str] = collections.Counter()
    for row in survey(sys.argv[1:] or CONFIG_MAPPING):
        counts[row.verdict] += 1
        print(f"{row.family:32} {row.verdict:10} {row.why[:160]}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    main()
