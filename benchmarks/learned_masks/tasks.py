"""The three tasks: classifying Reuters R8, masked-language modelling, and sentence embeddings."""

from __future__ import annotations

import abc
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from benchmarks.learned_masks.documents import Batches, Encoded, encode, once
from benchmarks.learned_masks.labelled_text import reuters_r8, speeches
from benchmarks.learned_masks.protocol import Setup
from sparsebert.demo.encoder import model_folder, pool
from sparsebert.learn.data import prepare, train_tokenizer
from sparsebert.learn.python_text import docstrings_by_module, topics
from sparsebert.learn.sources import python_text

Batch = dict[str, torch.Tensor]

_EVALUATED = 64  # documents of a batch without gradients, of 128 tokens
_POOL = 8  # batches whose documents are sorted by length together


class Task(abc.ABC):
    """Data, a dense model to start from, a loss, and what is measured, of one seed.

    Args:
        setup: sizes and lengths.
        seed: of the batches, and of what is new in the model.
        folder: where a dense training is kept.
        device: where models and batches are.
    """

    name: ClassVar[str]
    pretrained: ClassVar[bool] = True
    """Whether the start can do the task, so that a mask swapped into it can be judged."""

    def __init__(self, setup: Setup, seed: int, folder: Path, device: str = "cpu") -> None:
        self.setup, self.seed, self.folder, self.device = setup, seed, folder, device

    @abc.abstractmethod
    def start(self) -> nn.Module:
        """A new copy of the dense model that all contenders start from."""

    @abc.abstractmethod
    def batch(self, step: int) -> Batch:
        """Training batch `step`, on the device; a function of the seed and the step alone."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """What is measured: "loss", the lower the better, and what the task has besides."""

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The task's own loss, a scalar."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    def hidden(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Last hidden states [B, N, E]."""
        hidden: torch.Tensor = model(
            **_unlabelled(batch), output_hidden_states=True
        ).hidden_states[-1]
        return hidden

    def scored(self, model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
        """Of a dense start and a batch, what `position_scores` takes: with labels, by their loss;
        without, by what changes the embedding.
        """
        return model, batch

    def _there(self, batch: Batch, *names: str) -> Batch:
        return {name: batch[name].to(self.device) for name in names}


class Classifier(nn.Module):
    """An encoder, and a new linear layer on its embedding: the mean over real tokens, length 1.

    That is how MiniLM was trained to be read; [CLS] of it says little before a long training.
    """

    scale = 16.0  # of the embedding, so that logits can part

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classify = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        embedded = pool(hidden.last_hidden_state.float(), attention_mask)
        logits: torch.Tensor = self.classify(self.scale * embedded)
        return logits


class Reuters(Task):
    """MiniLM fine-tuned on Reuters R8 through a new classifier."""

    name = "r8"
    pretrained = False  # the classifier is new

    def __init__(self, setup: Setup, seed: int, folder: Path, device: str = "cpu") -> None:
        super().__init__(setup, seed, folder, device)
        text = reuters_r8()
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        train, self.test = (
            encode(part.texts, tokenizer, setup.seq_len) for part in (text.train, text.test)
        )
        self.classes, self.labels = text.classes, text.test.labels
        self.batches = Batches(train, text.train.labels, setup.batch, seed=seed, pool=_POOL)

    def start(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = Classifier(_minilm(), len(self.classes))
        return model.to(self.device)

    def batch(self, step: int) -> Batch:
        return self._there(self.batches.batch(step), "input_ids", "attention_mask", "labels")

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(**_unlabelled(batch)).float(), batch["labels"])

    def hidden(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        hidden: torch.Tensor = model.encoder(**_unlabelled(batch)).last_hidden_state
        return hidden

    def scored(self, model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
        return model.encoder, _unlabelled(batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        losses, right = [], []
        with torch.inference_mode():
            for batch in once(self.test, self.labels, _EVALUATED):
                batch = self._there(batch, "input_ids", "attention_mask", "labels")
                labels = batch.pop("labels")
                logits = model(**batch).float()
                losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
                right.append(logits.argmax(-1) == labels)
        return {
            "loss": torch.cat(losses).mean().item(),
            "accuracy": torch.cat(right).float().mean().item(),
        }


class MaskedLanguage(Task):
    """A small ModernBERT at the paper's shape (N = 128, 12 heads), trained from nothing.

    It has rotary positions and no windows of its own. A BERT of this size, with learned positions,
    does not leave the plateau of token frequencies in so few steps: no mask would matter to it.
    """

    name = "mlm"
    layers, heads, hidden_size, vocabulary = 2, 12, 192, 1024

    def __init__(self, setup: Setup, seed: int, folder: Path, device: str = "cpu") -> None:
        super().__init__(setup, seed, folder, device)
        text = python_text()
        kept = folder / f"tokenizer-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if not kept.exists():
            train_tokenizer(text, self.vocabulary).save_pretrained(kept)
        self.data = prepare(
            text, AutoTokenizer.from_pretrained(kept), setup.seq_len,
            most_validation=setup.documents or 256, seed=seed, where="Python's documentation",
        )  # fmt: skip
        self.blocks = self.data.training_set((setup.dense_steps + 10 * setup.steps) * setup.batch)
        self.dense = folder / f"dense-seed{seed}"

    def untrained(self) -> nn.Module:
        """The model before the dense training."""
        torch.manual_seed(self.seed)
        special = ("pad", "bos", "eos", "cls", "sep")
        config = ModernBertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=2 * self.hidden_size,
            max_position_embeddings=self.setup.seq_len,
            global_attn_every_n_layers=1,
            **dict.fromkeys((f"{name}_token_id" for name in special), 0),
        )
        return ModernBertForMaskedLM(config).to(self.device)

    def start(self) -> nn.Module:
        """The densely trained model; `experiment` trains it, see `dense`."""
        model: nn.Module = AutoModelForMaskedLM.from_pretrained(self.dense)
        return model.to(self.device)

    def batch(self, step: int) -> Batch:
        """Batches of the dense training come before step 0, as negative steps."""
        first = (self.setup.dense_steps + step) * self.setup.batch
        batch = self.blocks.batch(range(first, first + self.setup.batch))
        return self._there(batch, "input_ids", "labels")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        total, count, blocks = 0.0, 0, self.data.validation
        with torch.inference_mode():
            for first in range(0, len(blocks), _EVALUATED):
                batch = blocks.batch(range(first, min(first + _EVALUATED, len(blocks))))
                batch = self._there(batch, "input_ids", "labels")
                wanted = int((batch["labels"] >= 0).sum())
                total, count = total + float(self.loss(model, batch)) * wanted, count + wanted
        return {"loss": total / count}


class Embeddings(Task):
    """MiniLM distilled into its sparse self: its embeddings of passages, without any labels.

    Trained and measured by the presidents' messages and Python's documentation, as many passages
    of each; every third text is held out, and gives the passages that are measured. Topics of the
    documentation repeat one another: of the runs of 12 words in the held-out ones three in ten
    are in the others, too (one in ten of all its documentation, one in sixty of the messages).
    """

    name = "embeddings"

    def __init__(self, setup: Setup, seed: int, folder: Path, device: str = "cpu") -> None:
        super().__init__(setup, seed, folder, device)
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        n = setup.seq_len
        sources = [each.text for each in speeches()], [*topics(), *docstrings_by_module()]
        rest = ([text for i, text in enumerate(texts) if i % 3] for texts in sources)
        train = [passages(texts, tokenizer, n) for texts in rest]
        held_out = [passages(texts[::3], tokenizer, n) for texts in sources]
        self.passages = evenly(train, min(len(each) for each in train))
        most = min(len(each) for each in held_out)
        self.test = evenly(held_out, min(most, setup.documents // len(held_out) or most))
        nothing = torch.zeros(len(self.passages), dtype=torch.int64)
        lengths = torch.full((len(self.passages),), n)
        encoded = Encoded(self.passages, lengths, lengths)
        self.batches = Batches(encoded, nothing, setup.batch, seed=seed)
        self.teacher = self.start().eval().requires_grad_(False)
        self._wanted = self._embedded(self.teacher)

    def start(self) -> nn.Module:
        return _minilm().to(self.device)

    def batch(self, step: int) -> Batch:
        return self._there(self.batches.batch(step), "input_ids", "attention_mask")

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.hidden(self.teacher, batch)
        hidden = self.hidden(model, batch)
        found, goal = (pool(h.float(), batch["attention_mask"]) for h in (hidden, wanted))
        return (1.0 - (found * goal).sum(-1)).mean()

    def hidden(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        hidden: torch.Tensor = model(**batch).last_hidden_state
        return hidden

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        found = self._embedded(model)
        drift = 1.0 - (found * self._wanted).sum(-1)
        return {
            "loss": drift.mean().item(),
            "recall_1": recall(found, self._wanted, 1),
            "recall_10": recall(found, self._wanted, 10),
        }

    def _embedded(self, model: nn.Module) -> torch.Tensor:
        embedded = []
        size = max(1, _EVALUATED * 128 // self.setup.seq_len)
        with torch.inference_mode():
            for ids in self.test.split(size):
                ids = ids.to(self.device)
                hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids).bool())
                embedded.append(
                    pool(hidden.last_hidden_state.float(), torch.ones_like(ids).bool())
                )
        return torch.cat(embedded)


def _unlabelled(batch: Batch) -> Batch:
    return {name: x for name, x in batch.items() if name != "labels"}


def _minilm() -> nn.Module:
    model: nn.Module = BertModel.from_pretrained(model_folder(), add_pooling_layer=False)
    return model


def passages(texts: list[str], tokenizer: Any, seq_len: int) -> torch.Tensor:
    """All passages of seq_len - 2 tokens, between [CLS] and [SEP], int64 [K, N].

    Texts are cut one by one, and what is left of each is left out; a shorter text has none.

    Raises:
        ValueError: no text is long enough.
    """
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    inner = seq_len - 2
    found = [row[i : i + inner] for row in rows for i in range(0, len(row) - inner + 1, inner)]
    if not found:
        raise ValueError(
            f"passages: none of {len(texts)} texts has the {inner} tokens of a passage; ask for a "
            "shorter seq_len, or give longer texts"
        )
    tokens = torch.tensor(found)
    first, last = (
        tokens.new_full((len(tokens), 1), token)
        for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)
    )
    return torch.cat([first, tokens, last], dim=1)


def evenly(sources: list[torch.Tensor], count: int) -> torch.Tensor:
    """`count` rows of each source, which has as many, spread over it; one source after another."""
    return torch.cat([rows[torch.arange(count) * len(rows) // count] for rows in sources])


def recall(found: torch.Tensor, wanted: torch.Tensor, k: int) -> float:
    """Share of the k nearest neighbours by embeddings `wanted` that are so by `found`, too."""
    nearest = []
    for embedded in (found, wanted):
        similar = embedded @ embedded.T
        nearest.append(similar.fill_diagonal_(-torch.inf).topk(k, dim=-1).indices)
    shared = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(-1)
    return shared.float().mean().item()


TASKS: dict[str, type[Task]] = {task.name: task for task in (Reuters, MaskedLanguage, Embeddings)}
