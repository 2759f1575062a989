"""Masked-language modelling on a text: tokenizer, blocks, and a corruption that can be repeated.

    >>> from sparsebert.learn.data import prepare, train_tokenizer
    >>> text = "Attention positions are not equally important. " * 200
    >>> tokenizer = train_tokenizer(text, vocab_size=80)
    >>> data = prepare(text, tokenizer, seq_len=32)
    >>> data.train.batch(range(4))["input_ids"].shape  # corrupted blocks
    torch.Size([4, 32])

Everything is a function of the text, the settings and a seed: item i of a data set is the same
whenever and wherever it is asked for, so a resumed training sees what it would have seen.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch.utils.data import Dataset

from sparsebert.support import checks

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100
"""The label of a token that is not to be predicted, as in transformers and torch."""

_STRETCHES = 10  # of validation blocks, spread over the text


def train_tokenizer(text: str, vocab_size: int = 4096) -> Any:
    """A WordPiece tokenizer (lower case, BERT's rules) trained on `text`.

    Args:
        text: in one piece; lines are its units.
        vocab_size: most tokens, special ones included.

    Returns a transformers PreTrainedTokenizerFast with [CLS], [SEP], [MASK], [PAD] and [UNK]; the
    same text gives the same tokenizer.

    Raises:
        TypeError, ValueError: no text, or a vocabulary of fewer than 20 tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    vocab_size = checks.integer("train_tokenizer", "vocab_size", vocab_size, 4 * len(SPECIAL))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    lines = [normalizer.normalize_str(line) for line in text.splitlines()]
    counts = collections.Counter(character for line in lines for character in line)
    if not any(not character.isspace() for character in counts):
        raise ValueError("train_tokenizer: text is empty; give some to learn a vocabulary from")

    # The trainer breaks ties by the tokens' ids, and gives "##x" its id when it first meets one,
    # in an order that changes from run to run: so all characters get theirs beforehand. At most
    # half of the vocabulary; rarer characters become [UNK].
    common = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = [character for character in common if not character.isspace()]
    alphabet = sorted(alphabet[: (vocab_size - len(SPECIAL)) // 4])
    first = [*SPECIAL, *alphabet, *("##" + character for character in alphabet)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(lines, trainer)

    # A tokenizer of its own, to which characters are no special tokens.
    tokenizer = Tokenizer(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


class MaskedBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of tokens, corrupted for masked-language modelling.

    In each block 15 % of the tokens (rounded, at least one; never [CLS] and [SEP]) are to be
    predicted: 80 % of them become [MASK], 10 % a random token, 10 % stay, as in BERT. Item i has
    "input_ids" and "labels", int64 [N]; labels are -100 where nothing is to be predicted.

    Args:
        blocks: int64 [K, N], [CLS] first and [SEP] last.
        mask_token: the id of [MASK].
        ordinary: ids of the tokens that are not special, to draw random ones from.
        seed: of the corruption and of the order.
        shuffle: items go through all blocks in a new order again and again, each time corrupted
            anew; else item i is block i.
        length: number of items; None means K.
        start: with shuffle: the items before are left out, so that a later phase of a training
            sees what an earlier one has not seen.
        share: of the tokens that are to be predicted.

    Raises:
        TypeError, ValueError: a length that is no positive integer; without shuffle, one above K.
    """

    def __init__(
        self,
        blocks: torch.Tensor,
        mask_token: int,
        ordinary: torch.Tensor,
        *,
        seed: int = 0,
        shuffle: bool = False,
        length: int | None = None,
        start: int = 0,
        share: float = 0.15,
    ) -> None:
        self.blocks = blocks
        self.mask_token = mask_token
        self.ordinary = ordinary
        self.seed = checks.integer("MaskedBlocks", "seed", seed, 0, 2**31 - 1)
        self.shuffle = shuffle
        most = None if shuffle else len(blocks)
        self.length = len(blocks)
        if length is not None:
            self.length = checks.integer("MaskedBlocks", "length", length, 1, most)
        self.start = checks.integer("MaskedBlocks", "start", start, 0, None if shuffle else 0)
        self.share = share
        self._order = (-1, torch.empty(0))  # the latest round through the blocks, and its order

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> dict[str, torch.Tensor]:
        i = index.__index__()
        if not 0 <= i < self.length:  # also what ends a for loop over the items
            raise IndexError(f"MaskedBlocks: item {i} of {self.length}")
        i += self.start
        generator = torch.Generator().manual_seed(self._mixed(1, i))
        tokens = self.blocks[self._block(i)]
        n = len(tokens)
        wanted = max(1, round(self.share * (n - 2)))
        chosen = 1 + torch.randperm(n - 2, generator=generator)[:wanted]
        labels = torch.full_like(tokens, IGNORED)
        labels[chosen] = tokens[chosen]
        drawn = torch.randint(len(self.ordinary), (wanted,), generator=generator)
        fate = torch.rand(wanted, generator=generator)
        corrupted = torch.where(fate < 0.9, self.ordinary[drawn], tokens[chosen])
        corrupted[fate < 0.8] = self.mask_token
        inputs = tokens.clone()
        inputs[chosen] = corrupted
        return {"input_ids": inputs, "labels": labels}

    def batch(self, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several items, stacked: "input_ids" and "labels", int64 [B, N]."""
        rows = [self[i] for i in items]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _block(self, item: int) -> int:
        if not self.shuffle:
            return item
        lap, place = divmod(item, len(self.blocks))
        if self._order[0] != lap:
            generator = torch.Generator().manual_seed(self._mixed(2, lap))
            self._order = (lap, torch.randperm(len(self.blocks), generator=generator))
        return int(self._order[1][place])

    def _mixed(self, purpose: int, number: int) -> int:
        """Seeds far apart for neighbouring numbers."""
        return ((4 * self.seed + purpose) * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % (
            2**63
        )


@dataclasses.dataclass(frozen=True)
class MaskedText:
    """A text ready for masked-language modelling; see `prepare`.

    Attributes:
        train: once through the training blocks.
        validation: always the same blocks with the same corruption, so that losses compare.
        left_out: tokens at the end that fill no block.
    """

    train: MaskedBlocks
    validation: MaskedBlocks
    left_out: int = 0

    def about(self, where: str, characters: int) -> str:
        """What the data are, in words."""
        return (
            f"masked-language modelling on {where}, {characters / 1e6:.2f} million characters, "
            f"{len(self.train)} blocks for training and {len(self.validation)} for validation; "
            "documents longer than a block go on in the next, none is truncated, and "
            f"{self.left_out} tokens at the end fill no block"
        )

    def training_set(self, length: int, start: int = 0) -> MaskedBlocks:
        """`length` items (steps x batch size), each time through the blocks in a new order.

        `start` items are left out: what an earlier phase has seen.
        """
        train = self.train
        return MaskedBlocks(
            train.blocks, train.mask_token, train.ordinary,
            seed=train.seed, shuffle=True, length=length, start=start, share=train.share,
        )  # fmt: skip


def prepare(
    text: str,
    tokenizer: Any,
    seq_len: int,
    *,
    validation: float = 0.1,
    most_validation: int | None = None,
    seed: int = 0,
    max_positions: int | None = None,
    where: str | os.PathLike[str] = "the text",
) -> MaskedText:
    """Cut a text into blocks of `seq_len` tokens, some of them for validation.

    Args:
        text: in one piece; the tokens that do not fill a last block are left out.
        tokenizer: a transformers tokenizer with [CLS], [SEP] and [MASK] tokens.
        seq_len: N, [CLS] and [SEP] included, at least 8.
        validation: share of the blocks for validation, in (0, 1): ten stretches of neighbouring
            blocks, spread over the text. No block is in both.
        most_validation: if there are more of them, keep this many, evenly from all.
        seed: of the order and of the corruption of training blocks. The validation set does not
            depend on it.
        max_positions: the longest sequence that the model takes.
        where: what the text is, for error messages.

    Raises:
        TypeError, ValueError: settings out of range, a tokenizer without the special tokens, a
            text of fewer than two blocks.
    """
    seq_len = checks.integer("prepare", "seq_len", seq_len, 8)
    if not 0.0 < validation < 1.0:
        raise ValueError(f"prepare: validation must be in (0, 1), got {validation}")
    if max_positions is not None and seq_len > max_positions:
        raise ValueError(
            f"prepare: seq_len={seq_len} but the model has {max_positions} positions; ask for at "
            "most that"
        )
    for name in ("cls_token_id", "sep_token_id", "mask_token_id"):
        if getattr(tokenizer, name) is None:
            raise ValueError(
                f"prepare: the tokenizer has no {name}; masked-language modelling needs an "
                "encoder's tokenizer, or train_tokenizer(text)"
            )
    tokens = encode(text, tokenizer)
    inner = seq_len - 2
    count = len(tokens) // inner
    if count < 2:
        raise ValueError(
            f"prepare: {os.fspath(where)} has {len(tokens)} tokens, but training and validation "
            f"need a block of {inner} each; give more text, or a smaller seq_len"
        )
    blocks = torch.empty(count, seq_len, dtype=torch.int64)
    blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks[:, 1:-1] = tokens[: count * inner].view(count, inner)

    held_out = validation_blocks(count, validation)
    chosen = blocks[held_out]
    if most_validation is not None:
        most = checks.integer("prepare", "most_validation", most_validation, 1)
        kept = min(most, len(chosen))
        chosen = chosen[torch.arange(kept) * len(chosen) // kept]
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    mask_token = tokenizer.mask_token_id
    return MaskedText(
        MaskedBlocks(blocks[~held_out], mask_token, ordinary, seed=seed, shuffle=True),
        MaskedBlocks(chosen, mask_token, ordinary),
        len(tokens) - count * inner,
    )


def encode(text: str, tokenizer: Any) -> torch.Tensor:
    """The tokens of a text, line by line, without special ones: int64 [T]."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return torch.empty(0, dtype=torch.int64)
    encoded = tokenizer(
        lines,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # lines may be longer than a model's positions; they are cut into blocks
    )
    rows = encoded["input_ids"]
    return torch.tensor([token for row in rows for token in row])


def validation_blocks(count: int, share: float) -> torch.Tensor:
    """Which of `count` blocks are for validation, bool [count]: some for each side.

    Stretches of neighbours, because a block's neighbours are about the same matters.
    """
    stretch = max(1, round(count * share / _STRETCHES))
    period = max(stretch + 1, round(stretch / share))
    held_out = torch.arange(count) % period >= period - stretch
    if not held_out.any():
        held_out[-1] = True
    return held_out
