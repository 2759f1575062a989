"""What README and docs say, against the code: blocks run, paths exist, numbers are the CSVs'."""

import contextlib
import csv
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsebert as sb
from sparsebert.compiler.cost.constants import isas
from sparsebert.compiler.cost.model import cost_model
from tests import ROOT
from tests.compiler.plans import singles_plan, tiles_plan

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPILER = (ROOT / "docs" / "compiler.md").read_text(encoding="utf-8")
LEARNING = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
PAGES = {
    "README.md": README,
    "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    "docs/compiler.md": COMPILER,
    "docs/learning.md": LEARNING,
    "docs/theory.md": THEORY,
    "docs/cpu_kernels.md": (ROOT / "docs" / "cpu_kernels.md").read_text(encoding="utf-8"),
    "docs/gpu_kernels.md": (ROOT / "docs" / "gpu_kernels.md").read_text(encoding="utf-8"),
    "benchmarks/README.md": (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"),
    "examples/README.md": (ROOT / "examples" / "README.md").read_text(encoding="utf-8"),
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def flat(page: str) -> str:
    """The page without line breaks."""
    return " ".join(page.split())


# ------------------------------------------------------------------------------ code


def test_the_quick_start_shows_a_plan_that_pays() -> None:
    """On few threads and on many: what a newcomer sees first must not be dense."""
    (made,) = re.findall(r"^mask = (sb\.patterns.*)$", blocks(README, "python")[0], re.MULTILINE)
    mask = eval(made)
    for threads in (2, 16):
        report = sb.compile_plan(mask, target="cpu", threads=threads).explain()
        assert report.executed_fraction < 0.1
        assert report.predicted_speedup > 1.5


def test_where_sparsity_begins_to_pay() -> None:
    said = "from 512 tokens with one CPU thread, 1,024 with two, 2,048 with eight, 4,096 with"
    assert said in flat(README)
    assert "from 512 tokens with one thread, 1,024 with two, 2,048 with eight and 4,096 with" in (
        flat(COMPILER)
    )
    for threads, length in ((1, 512), (2, 1024), (8, 2048), (16, 4096)):
        for tokens, pays in ((length // 2, False), (length, True)):
            mask = sb.patterns.longformer(tokens, window=16, num_global=2).without_diagonal()
            report = tiles_plan(mask, threads=threads).explain()
            assert (report.executed_fraction < 1.0) == pays, (threads, tokens)


@pytest.mark.parametrize("isa", isas("cpu", "native"))
def test_where_the_native_kernels_begin_to_pay(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "the native kernels {}from 128 tokens at the latest (256 by their portable code)"
    shortest = 256 if isa == "generic" else 128
    assert said.format("of the CPU ") in flat(README) and said.format("") in flat(COMPILER)
    monkeypatch.setattr("sparsebert.compiler.compile.isa_for", lambda *_: isa)
    for threads, tokens in itertools.product((1, 2, 8, 16), (shortest, 512, 2048)):
        mask = sb.patterns.longformer(tokens, window=16, num_global=2).without_diagonal()
        report = singles_plan(mask, threads=threads).explain()
        assert report.isa == isa
        assert report.executed_fraction < 1.0, (threads, tokens)


def test_the_blocks_of_the_page_on_learning_run(tmp_path: Path) -> None:
    whole, loop, warm = blocks(LEARNING, "python")
    given = """
import torch, transformers, sparsebert as sb
from sparsebert.dam.search import MaskSearch
config = transformers.BertConfig(
    num_hidden_layers=1, hidden_size=24, num_attention_heads=12, intermediate_size=24,
    vocab_size=50,
)
model = transformers.BertForMaskedLM(config)
args = transformers.TrainingArguments("out", max_steps=1, save_strategy="no", disable_tqdm=True)
ids = torch.randint(3, 50, (8, 128))
data = [{"input_ids": row, "labels": row} for row in ids]
"""
    again = """
model = transformers.BertForMaskedLM(config)
dam = sb.DifferentiableAttentionMask(num_layers=1, num_heads=12, seq_len=128)
total_steps, batches = 1, [{"input_ids": ids, "labels": ids}]
"""
    dense = "model = transformers.BertForMaskedLM(config)"
    code = "\n".join(
        (f"import sys; sys.path.insert(1, {str(ROOT)!r})", given, whole, again, loop, dense, warm)
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:sparsebert", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "MasksNotSavedWarning" not in run.stderr
    assert (tmp_path / "folder" / "sparsebert_masks.safetensors").is_file()


def test_the_blocks_of_the_page_on_theory_run() -> None:
    for block in blocks(THEORY, "python"):
        exec(block, {})


def test_the_tests_that_the_page_on_theory_names_are_there() -> None:
    files = (ROOT / "tests" / "theory").glob("test_*.py")
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    for name in re.findall(r"`(test_\w+)`", THEORY):
        assert f"def {name}(" in code, name


def test_every_command_that_a_page_names_is_there() -> None:
    from sparsebert.cli import build_parser

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    for name, page in PAGES.items():
        for target in re.findall(r"`make ([a-z-]+)", page):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (name, target)
        for command in re.findall(r"`(?:sparsebert|python -m sparsebert) ([a-z]+)", page):
            assert command in commands, (name, command)
        for module in re.findall(r"python -m ((?:benchmarks|docs)[a-z_.]*)", page):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_option_that_a_page_names_is_there() -> None:
    """Long options in shell blocks and in backticks, by the help of their command."""
    from sparsebert.cli import main

    for page in PAGES.values():
        shown = [*"".join(blocks(page, "sh")).splitlines(), *re.findall(r"`([^`\n]+)`", page)]
        for line in shown:
            if not (line.startswith("sparsebert ") and "--" in line):
                continue
            words = line.split("#")[0].split()[1:]
            names = words[:2] if words[0] == "patterns" else words[:1]
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                main([*names, "--help"])
            for option in re.findall(r"--[a-z-]+", line):
                assert option in told.getvalue(), line


# ------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert ((ROOT / name).parent / link).exists(), link


def test_the_map_is_that_of_the_repository() -> None:
    (table,) = re.findall(r"## Map of the repository\n\n(.*?)\n\n", README, re.DOTALL)
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    paths = [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
    folders = (ROOT, ROOT / "sparsebert")
    for path in paths:
        assert any((folder / path).exists() for folder in folders), path
    for package in (ROOT / "sparsebert").glob("*/__init__.py"):
        name = package.parent.name
        assert {f"{name}/", f"sparsebert/{name}/"} & set(paths), name


@pytest.mark.parametrize("name", PAGES)
def test_paths_in_backticks_exist(name: str) -> None:
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|md|csv|json))`", PAGES[name]):
        assert (ROOT / path).exists(), path


# ------------------------------------------------------------------------------ numbers


def test_the_margin_is_the_models() -> None:
    assert f"({cost_model('cpu').margin:g} at present;" in flat(COMPILER)
    assert "1.1 by decree on GPUs" in COMPILER
    assert cost_model("sm90").margin == cost_model("gfx942").margin == 1.1


def test_bounds_are_the_codes() -> None:
    from sparsebert import memory
    from sparsebert.masks import bits

    assert memory.DEFAULT_BYTES == 512 << 20
    assert f"remembered up to 512 MiB ({memory.VARIABLE})" in flat(README)
    assert "built up to 2 GiB (SPARSEBERT_MAX_MASK_BYTES)" in flat(README)
    if "SPARSEBERT_MAX_MASK_BYTES" not in os.environ:
        assert bits.MAX_BYTES == 2 << 30


def test_what_is_said_of_the_fit_is_what_its_rows_say() -> None:
    from benchmarks.cost.fitting import MeasuredCall, fit_pass

    results = ROOT / "benchmarks" / "results" / "fit_cost_model.csv"
    with results.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    rows = [MeasuredCall.from_row(row) for row in read]
    shares = []
    for route in ("tiles", "dense"):
        for column in (0, 1):
            errors = fit_pass(rows, column).errors
            shares += list(np.quantile(np.abs(errors[route]), [0.5, 0.9]))
    said = flat(COMPILER)
    sentence = re.search(
        r"for tiles are off by (\d+) % in the median and by less than (\d+) % in nine of ten, "
        r"forward \(backward (\d+) % and (\d+) %\); dense by (\d+) % and (\d+) % \(backward "
        r"(\d+) % and (\d+) %\)",
        said,
    )
    assert sentence is not None
    assert [int(share) / 100 for share in sentence.groups()] == pytest.approx(shares, abs=0.006)
    cases = len(read) / len({(row["D"], row["threads used"]) for row in read})
    assert f"measures {cases:.0f} plans and dense calls" in said
    source = cost_model("cpu").source
    assert "threads (1, 2)" in source and "an idle machine (two threads of an Intel" in said


def test_what_is_said_of_unseen_masks_is_what_the_check_says() -> None:
    from benchmarks.cost import cost_check

    with (ROOT / "benchmarks" / "results" / "cost_check.csv").open(encoding="utf-8") as file:
        rows: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file)]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        cost_check.summarise(rows)
    found = re.findall(r"median (\d+)%, 90 % below (\d+)%", told.getvalue())
    (tiles, dense) = (f"{middle} % and {most} %" for middle, most in found)
    right = re.findall(r"right choice in (\d+) of", told.getvalue())
    median = re.findall(r"took ([\d.]+)x \(median\), at worst ([\d.]+)x", told.getvalue())
    assert (
        f"On {len(rows)} cases not fitted: tiles {tiles}, dense {dense}; the choice was right in "
        f"{right[0]} forward and in {right[1]} of the training steps, the others took "
        f"{median[0][0]} and {median[1][0]} times the faster route's time (median; "
        f"{median[0][1]} at worst)" in flat(COMPILER)
    )
    assert "slower than dense in 0, at worst 1.03x" in told.getvalue()
    assert "slower than dense in 1, at worst 1.08x" in told.getvalue()
