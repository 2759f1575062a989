"""The model of the planted task: a BERT of one layer whose weights are written down, not learned.

>>> from sparsebert.learn.planted import PlantedTask
>>> from sparsebert.learn.planted_model import planted_model
>>> task = PlantedTask(seq_len=128)
>>> model = planted_model(task)
>>> batch = task.validation.batch(range(8))
>>> bool(model(**batch).logits.argmax(-1).eq(batch["labels"]).float().mean() > 0.97)
True
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import BertConfig, BertForTokenClassification

from sparsebert.learn.planted import CODE, HEADS, VALUES, PlantedTask

_HEAD_DIM = 64
_WIDTH = HEADS * _HEAD_DIM

# Where in the width things stand: a position's own code, those of its partners, its token (votes
# first, then content), and what attention writes: the topic, and each head's partner.
_OWN = slice(0, CODE)
_PARTNERS = [slice((1 + h) * CODE, (2 + h) * CODE) for h in range(HEADS)]
_TOKEN = slice((1 + HEADS) * CODE, (1 + HEADS) * CODE + 2 * VALUES)
_READ = [slice(_TOKEN.stop + k * VALUES, _TOKEN.stop + (k + 1) * VALUES) for k in range(1 + HEADS)]

_PARTNER_SCORE = 10.0  # of attention; that of content which is no partner is near 0
_VOTES_RATIO = 5.0  # attention to a vote, of that to the partner: the middle of it
_MARGINS = (8.0, *HEADS * (16.0,))
"""Of the logits of topic (if all votes were right) and partners, to others. The latter are so
large that the model is sure, and gradients say nothing of the partners."""


def planted_model(task: PlantedTask) -> Any:
    """A BertForTokenClassification of one layer that solves the task, in evaluation mode.

    It has no dropout. Its feed-forward part adds nothing, but can be trained.
    """
    torch.manual_seed(task.seed)
    config = BertConfig(
        vocab_size=2 * VALUES,
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=_WIDTH,
        max_position_embeddings=task.seq_len,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,
    )
    config.num_labels = VALUES ** (1 + HEADS)
    model = BertForTokenClassification(config).eval()
    with torch.no_grad():
        low, high, code = _write_embeddings(model.bert.embeddings, task)
        layer = model.bert.encoder.layer[0]
        _write_scores(layer.attention.self, task, low, high, code)
        _write_values(layer.attention, task, low, high)
        _zero(layer.output.dense)
        _write_classifier(model.classifier)
    return model


def _write_embeddings(embeddings: Any, task: PlantedTask) -> tuple[float, float, float]:
    """Tokens and codes; returns what layer normalization makes of a 0, of a token, of a code."""
    words, places = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
    for weight in (words, places, embeddings.token_type_embeddings.weight):
        weight.zero_()
    words[:, _TOKEN] = 3.0 * torch.eye(2 * VALUES)
    places[:, _OWN] = task.codes
    for h, partners in enumerate(task.partners):
        places[:, _PARTNERS[h]] = task.codes[partners]
    # All sums of a word and a place hold the same numbers in another order, so it makes the same
    # shift and scale of all of them.
    normal = embeddings.LayerNorm(words[:1] + places[:1])[0]
    code = (normal[_OWN].amax() - normal[_OWN].amin()).item() / 2.0
    return normal[_READ[0]].amax().item(), normal[_TOKEN].amax().item(), code


def _write_scores(attention: Any, task: PlantedTask, low: float, high: float, code: float) -> None:
    """Queries ask for the partner's code, and for votes; keys say which they are."""
    _zero(attention.query)
    _zero(attention.key)
    root = _HEAD_DIM**0.5  # scores are divided by it
    for h in range(HEADS):
        codes = slice(h * _HEAD_DIM, h * _HEAD_DIM + CODE)
        attention.query.weight[codes, _PARTNERS[h]] = (
            root * _PARTNER_SCORE / (CODE * code**2) * torch.eye(CODE)
        )
        attention.key.weight[codes, _OWN] = torch.eye(CODE)
        # One more number of the head: 1 in the keys of votes, 0 in those of content.
        vote, votes = codes.stop, slice(_TOKEN.start, _TOKEN.start + VALUES)
        attention.query.bias[vote] = root * (_PARTNER_SCORE + math.log(_VOTES_RATIO))
        attention.key.weight[vote, votes] = 1.0 / (high - low)
        attention.key.bias[vote] = -VALUES * low / (high - low)


def _write_values(attention: Any, task: PlantedTask, low: float, high: float) -> None:
    """Each head carries the tokens, as 0 and 1, to where the topic and its partner are read."""
    out = attention.output.dense
    _zero(attention.self.value)
    _zero(out)
    partners_share = 1.0 / (len(task.votes) * _VOTES_RATIO + 1.0)  # of a position's attention
    for h in range(HEADS):
        end = (h + 1) * _HEAD_DIM
        tokens = slice(end - 2 * VALUES, end)
        attention.self.value.weight[tokens, _TOKEN] = torch.eye(2 * VALUES) / (high - low)
        attention.self.value.bias[tokens] = -low / (high - low)
        votes, content = slice(tokens.start, end - VALUES), slice(end - VALUES, end)
        out.weight[_READ[0], votes] = torch.eye(VALUES) / HEADS
        out.weight[_READ[1 + h], content] = torch.eye(VALUES) / partners_share


def _write_classifier(classifier: Any) -> None:
    """The class of a topic and its partners' contents: the sum of what speaks for each."""
    _zero(classifier)
    classes = torch.arange(VALUES ** (1 + HEADS))
    for k, margin in enumerate(_MARGINS):
        digit = classes // VALUES ** (HEADS - k) % VALUES
        classifier.weight[classes, _READ[k].start + digit] = margin


def _zero(linear: Any) -> None:
    linear.weight.zero_()
    linear.bias.zero_()
