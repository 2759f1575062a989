"""A DAM that is still being learned, on disk beside its model.

`save_pretrained` writes the DAM's parameters with the model's, but `from_pretrained` knows no DAM
and skips them (with a warning of unexpected keys). `save_dam` writes a file of its own, from which
`load_dam` builds the DAM again and attaches it. For a finished mask see `sparsebert.save_masks`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from torch import nn

from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.integrations.huggingface.dam import attach_dam, attached
from sparsebert.storage import CheckedFile

Model = TypeVar("Model", bound=nn.Module)

DAM_FILE = "sparsebert_dam.safetensors"

_FLOATS = ("F32", "F64", "BF16", "F16")
_FILE = CheckedFile(
    name="file that save_dam wrote",
    key="sparsebert-dam",
    version=1,
    fields=frozenset({"settings", "gate"}),
    arrays={
        "alpha": _FLOATS,
        "temperature": _FLOATS,
        "noise_seed": ("I64",),
        "draws": ("I64",),
    },
    writer="save_dam",
    reader="load_dam",
    framework="pt",
    before_sums=True,
)


def save_dam(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the DAM of `model` to `folder`, beside what `save_pretrained` writes there.

    One file, ``sparsebert_dam.safetensors``: alpha, the temperature, the place in the noise
    stream, and the settings and the gate in its header.

    Raises:
        ValueError: the model has no DAM.
    """
    shared = attached(model)
    state = {name: x.detach().cpu().contiguous() for name, x in shared.dam.state_dict().items()}
    target = Path(folder) / DAM_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    _FILE.write(target, state, {"settings": shared.dam.settings(), "gate": shared.gate})


def load_dam(model: Model, folder: str | os.PathLike[str]) -> Model:
    """Attach to `model` the DAM that `save_dam` (or `DAMTrainer`) wrote to `folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, altered or of a newer version, or does not fit the model.

    Example:
        >>> import tempfile, sparsebert as sb
        >>> from transformers import BertConfig, BertModel
        >>> from sparsebert.integrations.huggingface.dam_files import load_dam, save_dam
        >>> size = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4)
        >>> dam = sb.DifferentiableAttentionMask(1, 4, 32)
        >>> model = sb.attach_dam(BertModel(BertConfig(**size)), dam)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_dam(model, folder)
        ...     again = load_dam(BertModel(BertConfig(**size)), folder)
    """
    path = Path(folder) / DAM_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"load_dam: no {DAM_FILE} in {os.fspath(folder)}; DAMTrainer and save_dam write it"
        )
    header, state = _FILE.read(path)
    dam = DifferentiableAttentionMask(**header["settings"], dtype=state["alpha"].dtype)
    dam.load_state_dict(state)
    return attach_dam(model, dam, gate=header["gate"])
