"""Make a fine-tuned encoder sparse without its training data: learn a mask, export, serve.

    python examples/sparsify_finetuned.py
    python examples/sparsify_finetuned.py --model my-encoder --text my_texts.txt --max-length 256

The dense model teaches the sparse one: any text will do, and the target of each passage is the
embedding that the dense model gives it. The mask is learned to 90 % zeros; then the model gets
used to it for a few more steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from starting_points import model_and_tokenizer
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

import sparsebert as sb
from sparsebert.learn.sources import python_text
from sparsebert.machine import threads_for


class Embedder(nn.Module):
    """An encoder with mean pooling; with labels, how far it is from those embeddings."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask[..., None].to(hidden.dtype)
        embedding = functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
        if labels is None:
            return {"embedding": embedding}
        loss = 1.0 - (embedding * labels).sum(-1).mean()
        return {"loss": loss, "embedding": embedding}


def main(arguments: list[str] | None = None) -> float:
    """Run the example; returns the mean cosine of served and dense embeddings."""
    options = parse(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)

    # 1. The fine-tuned model, passages to learn on, and what the dense model makes of them.
    text = Path(options.text).read_text(encoding="utf-8") if options.text else python_text()
    encoder, tokenizer = model_and_tokenizer(options.model, AutoModel, text)
    words = text.split()
    size = options.max_length // 2  # words; about as many tokens again come from splitting them
    passages = [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
    held_out = passages[::10][:32]
    learned_on = [p for i, p in enumerate(passages) if i % 10][: options.passages]
    model = Embedder(encoder.eval())
    targets = embed(model, tokenizer, learned_on, options.max_length)
    dense = embed(model, tokenizer, held_out, options.max_length)
    items = [
        {**tokenizer(passage, truncation=True, max_length=options.max_length), "labels": target}
        for passage, target in zip(learned_on, targets.tolist(), strict=True)
    ]
    common = {"train_dataset": items, "data_collator": DataCollatorWithPadding(tokenizer)}

    # 2. Learn the mask. attach_dam, DAMTrainer and sparsify find the encoder inside the module.
    heads = encoder.config.num_attention_heads
    dam = sb.DifferentiableAttentionMask(1, heads, seq_len=options.max_length, seed=0)
    trainer = sb.DAMTrainer(
        model=model, args=training(options, options.steps), dam=dam, sparsity=options.sparsity,
        mask_learning_rate=0.2, special_tokens=(0,), **common,
    )  # fmt: skip
    trainer.train()
    mask = trainer.finish()
    print(f"mask: {mask.sparsity:.1%} zeros")
    model.eval()
    swapped = cosine(embed(model, tokenizer, held_out, options.max_length), dense)
    Trainer(model=model, args=training(options, options.tune_steps), **common).train()

    # 3. Export: the mask stands beside the model's own files.
    sb.save_masks(encoder, options.output)
    encoder.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)

    # 4. Serve. This is all that another program needs.
    served = AutoModel.from_pretrained(options.output)
    served = sb.load_masks(served, options.output).eval()
    ready = AutoTokenizer.from_pretrained(options.output)
    after = cosine(embed(Embedder(served), ready, held_out, options.max_length), dense)
    print(f"cosine with the dense model's embeddings of {len(held_out)} other passages:")
    print(f"  {swapped:.3f} with the mask, {after:.3f} after training on with it")
    print(f"model, tokenizer and mask: {options.output}")
    return after


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="a folder; default: MiniLM, or a small fresh BERT")
    parser.add_argument("--text", help="a text file; default: Python's own documentation")
    parser.add_argument("--max-length", type=int, default=64, help="tokens in a passage")
    parser.add_argument("--passages", type=int, default=120, help="to learn on")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=24, help="of the search")
    parser.add_argument("--tune-steps", type=int, default=10, help="with the mask fixed")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("-o", "--output", default="out/examples/encoder")
    return parser.parse_args(arguments)


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


def embed(model: Embedder, tokenizer: Any, texts: list[str], max_length: int) -> torch.Tensor:
    """Embeddings [K, E]."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            batch = tokenizer(
                texts[start : start + 16], truncation=True, max_length=max_length, padding=True,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            output = model(batch["input_ids"], batch["attention_mask"])
            rows.append(output["embedding"].cpu())
    return torch.cat(rows)


def cosine(embeddings: torch.Tensor, others: torch.Tensor) -> float:
    return float((embeddings * others).sum(-1).mean())


if __name__ == "__main__":
    with threads_for() as machine:  # fewer of torch's threads where others use the machine
        print(machine)
        main()
