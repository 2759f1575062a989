"""Fine-tune a classifier and learn its attention mask, on a CSV or a dataset folder of yours.

    python examples/classify_with_dam.py
    python examples/classify_with_dam.py --csv mine.csv --text-column body --label-column stars
    python examples/classify_with_dam.py --dataset my_dataset --model my-bert --max-length 128

Two phases: a search, in which DAMTrainer trains model and mask together, and further training with
the mask fixed. The result goes to --output: model, tokenizer and mask.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path
from typing import Any

import torch
from starting_points import model_and_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

import sparsebert as sb
from sparsebert.machine import threads_for

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> float:
    """Run the example; returns the accuracy of the sparse model."""
    options = parse(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)

    # 1. The rows, shuffled; a fifth of them to test on.
    rows = read(options)
    random.Random(0).shuffle(rows)
    names = sorted({label for _, label in rows})
    model, tokenizer = model_and_tokenizer(
        options.model, AutoModelForSequenceClassification, "\n".join(text for text, _ in rows),
        num_labels=len(names), id2label=dict(enumerate(names)),
    )  # fmt: skip
    items = [
        {**tokenizer(text, truncation=True, max_length=options.max_length),
         "label": names.index(label)}
        for text, label in rows
    ]  # fmt: skip
    cut = len(items) - len(items) // 5
    train, test = items[:cut], items[cut:]
    common = {"train_dataset": train, "data_collator": DataCollatorWithPadding(tokenizer)}

    # 2. The search: the mask is learned along with the weights, to the asked sparsity. One mask
    #    for each head, shared by all layers.
    heads = model.config.num_attention_heads
    dam = sb.DifferentiableAttentionMask(1, heads, seq_len=options.max_length, seed=0)
    trainer = sb.DAMTrainer(
        model=model, args=training(options, options.steps), dam=dam, sparsity=options.sparsity,
        mask_learning_rate=0.2,  # high, for so few steps
        special_tokens=(0,),  # [CLS]; where [SEP] is depends on the text
        **common,
    )  # fmt: skip
    trainer.train()
    print(f"searched: {trainer.history[-1]['mask_sparsity']:.1%} of the positions are to go")

    # 3. The result of the search: the model is sparse from here on.
    mask = trainer.finish(keep_tokens=[0])
    print(f"mask:     {mask.sparsity:.1%} zeros, accuracy {accuracy(model, test, common):.1%}")

    # 4. Train on with the mask as it is.
    Trainer(model=model, args=training(options, options.tune_steps), **common).train()
    final = accuracy(model, test, common)
    print(f"trained on with it: accuracy {final:.1%} on {len(test)} texts it has not seen")

    # 5. Keep it: sb.load_masks(model, folder) makes the model sparse again after from_pretrained.
    sb.save_masks(model, options.output)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"model, tokenizer and mask: {options.output}")
    return final


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--csv", default=HERE / "reviews.csv", help="a CSV file with a heading line")
    data.add_argument("--dataset", help="a folder that datasets' save_to_disk wrote")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--model", help="a folder; default: MiniLM, or a small fresh BERT")
    parser.add_argument("--max-length", type=int, default=32, help="tokens in a text")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=32, help="of the search")
    parser.add_argument("--tune-steps", type=int, default=24, help="with the mask fixed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("-o", "--output", default="out/examples/classifier")
    return parser.parse_args(arguments)


def read(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Texts and labels."""
    if options.dataset:
        import datasets

        found = datasets.load_from_disk(options.dataset)
        rows: Any = found["train"] if isinstance(found, datasets.DatasetDict) else found
        columns = rows.column_names
    else:
        with open(options.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = list(rows[0]) if rows else []
    for column in (options.text_column, options.label_column):
        if column not in columns:
            raise SystemExit(f"no column {column!r}; there are: {', '.join(columns)}")
    return [(row[options.text_column], str(row[options.label_column])) for row in rows]


def training(options: argparse.Namespace, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=f"{options.output}/checkpoints",
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        logging_steps=max(1, steps // 2),
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        seed=0,
    )


def accuracy(model: Any, test: list[dict[str, Any]], common: dict[str, Any]) -> float:
    """Share of the test texts that the model gets right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), 16):
            batch = common["data_collator"](test[start : start + 16]).to(model.device)
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(test)


if __name__ == "__main__":
    with threads_for() as machine:  # fewer of torch's threads where others use the machine
        print(machine)
        main()
