"""The command line, run in this process on tiny inputs: output, files, messages, exit codes."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsebert import cli, patterns, verify
from sparsebert.backends import registry
from sparsebert.cli import main, mask_commands
from sparsebert.masks import AttentionMask
from sparsebert.masks.images import distinct_heads
from sparsebert.tiles.images import tile_colours
from tests import ROOT

COMMANDS = [
    "demo", "patterns", "patterns list", "patterns build", "show", "explain", "verify", "estimate",
    "learn", "doctor",
]  # fmt: skip
Output = pytest.CaptureFixture[str]


@pytest.fixture
def star(tmp_path: Path) -> str:
    path = tmp_path / "star.safetensors"
    patterns.star(40).save(path)
    return str(path)


@pytest.fixture
def layered(tmp_path: Path) -> str:
    """Two layers of two heads; three different heads, one of them with dead rows."""
    window, causal = patterns.sliding_window(20, window=2), patterns.causal(20)
    path = tmp_path / "layered.safetensors"
    AttentionMask.stack_layers(
        [
            AttentionMask.stack_heads([window, causal]),
            AttentionMask.stack_heads([window, causal.without_diagonal()]),
        ]
    ).save(path)
    return str(path)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000


# ---------------------------------------------------------------- help and exit codes


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: Output) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_version_and_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "sparsebert", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith("sparsebert 0.")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "required: COMMAND"),
        ("frobnicate", "invalid choice: 'frobnicate'"),
        ("patterns build star -o {tmp}/x", "star needs --seq-len"),
        ("patterns build stra --seq-len 9 -o {tmp}/x", "no pattern 'stra'"),
        ("patterns build star --seq-len 0 -o {tmp}/x", "at least 1, got '0'"),
        ("patterns build star --seq-len 9 --param window -o {tmp}/x", "expected KEY=VALUE"),
        ("patterns build star --seq-len 9 --param window=wide -o {tmp}/x", "is not a number"),
        ("patterns build star --seq-len 9 --param window=1.5 -o {tmp}/x", "must be an integer"),
        ("patterns build star --seq-len 9 --param window=-1 -o {tmp}/x", "window=-1 but must"),
        ("patterns build star --seq-len 9 --param width=1 -o {tmp}/x", "'width'"),
        ("patterns build star --seq-len 9 --param seq_len=8 -o {tmp}/x", "as --seq-len N"),
        ("patterns build star --seq-len 9 --param window=1 window=2 -o {tmp}/x", "given twice"),
        (
            "patterns build star --seq-len 9 -o {tmp}/no/x",
            "cannot write {tmp}/no/x, there is no folder {tmp}/no",
        ),
        ("show {tmp}/missing", "no mask file"),
        ("show {tmp}", "is a directory; give the name of a file in it"),
        ("show {text}", "not a mask file"),
        ("show {mask} -o {text}/x.png", "cannot write"),
        ("explain {mask} --layer 1", "--layer 1"),
        ("explain {mask} --target h100", "expected cpu, sm90, gfx942 or the like, got 'h100'"),
        ("explain {mask} --target a100", "a100 is sm80; the targets with costs of their own are"),
        ("explain {mask} --target RTX-4090", "RTX-4090 is sm89"),
        ("explain {mask} --target 9.0", "9.0 is sm90"),
        ("explain {mask} --target tpu", "got 'tpu'; the targets with costs of their own are cpu"),
        ("estimate --hidden-size 64 --layers 1 --heads 2 --pattern star --target a100", "is sm80"),
        ("patterns build longformer --seq-len 200000 -o {tmp}/x", "takes 5.0 GB of bits"),
        ("verify {mask} --layer one", "invalid int value"),
        ("verify {mask} --dropout 1", "from 0 to below 1, got '1'"),
        ("verify {mask} --head-dim 257", "D must be at most 256, got 257"),
        ("verify {mask} --device nowhere", "cannot be used"),
        ("verify {heads} --heads 3", "H=3"),
        ("verify {mask} --backend cuda", "--backend: backend must be one of ('auto',"),
        ("demo --lengths 5000", "from 3 to 4096 tokens can be timed"),
        ("demo --sentences 1", "at least 2"),
    ],
)
def test_usage_errors(
    argv: str, message: str, star: str, layered: str, tmp_path: Path, capsys: Output
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("not a mask, but longer than eight bytes\n", encoding="utf-8")
    filled = argv.format(tmp=tmp_path, text=text, mask=star, heads=layered)
    assert main(filled.split()) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert message.format(tmp=tmp_path) in last and "error:" in last
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("patterns build stra --seq-len 9 -o {tmp}/x", "no pattern 'stra'"),
        ("patterns build star --seq-len 9 --param window=-1 -o {tmp}/x", "star: window=-1 but"),
        ("explain {mask} --layer 1", "--layer 1: the mask has 1"),
        ("verify {mask} --head-dim 257", "D must be at most 256"),
        ("learn --text {text} --seq-len 9000", "{text} has "),
        ("learn --csv {csv} --column body", "{csv} has no text column 'body'"),
        ("learn --text {mask}", "{mask} is not UTF-8 text"),
        (
            "learn --text {text} --vocab-size 10",
            "--vocab-size: vocab_size=10 but must be at",
        ),
        (
            "learn --text {text} --seq-len 4 --sparsity 0.5",
            "--seq-len: seq_len=4 but must be at least 8",
        ),
    ],
)
def test_errors_do_not_name_inner_functions(
    argv: str, message: str, star: str, tmp_path: Path, capsys: Output
) -> None:
    pytest.importorskip("transformers")
    names = {"tmp": tmp_path, "mask": star, "text": tmp_path / "a.txt", "csv": tmp_path / "a.csv"}
    names["text"].write_text("some words that are to be learnt\n" * 300, encoding="utf-8")
    names["csv"].write_text("title,year\nx,1\n", encoding="utf-8")
    output = ["-o", str(tmp_path / "out")] if argv.startswith("learn") else []
    assert main([*argv.format(**names).split(), *output]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"sparsebert: error: {message.format(**names)}"), last


def test_warnings_are_one_line(tmp_path: Path, capsys: Output) -> None:
    argv = f"patterns build longformer --seq-len 20 --param num_global=21 -o {tmp_path}/x"
    assert main(argv.split()) == 0
    assert capsys.readouterr().err == (
        "sparsebert: warning: longformer: window=5, num_global=21 forbid nothing among 20 tokens; "
        "ask for less, or write patterns.dense(20) if that is meant\n"
    )


def test_a_large_mask_is_announced(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size comes before the memory is asked for, here of a mask that is not built."""
    monkeypatch.setattr(patterns, "build", lambda *arguments, **parameters: patterns.star(9))
    assert main(f"patterns build longformer --seq-len 100000 -o {tmp_path}/x".split()) == 0
    assert capsys.readouterr().err == "longformer: 1.2 GB of bits, one a position\n"


def test_interrupt(star: str, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def stop(path: str) -> AttentionMask:
        raise KeyboardInterrupt

    monkeypatch.setattr(mask_commands, "load_mask", stop)
    assert main(["show", star]) == 130
    assert capsys.readouterr().err == "\nsparsebert: interrupted\n"


def test_reader_that_leaves() -> None:
    """`sparsebert patterns | head -1` ends quietly."""
    run = subprocess.run(
        f"{sys.executable} -m sparsebert patterns list | head -n 1",
        cwd=ROOT, shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "dense(seq_len)\n"
    assert run.stderr == ""


# ---------------------------------------------------------------- patterns


def test_list_shows_every_pattern(capsys: Output) -> None:
    assert main(["patterns"]) == 0
    shown = capsys.readouterr().out
    for name in patterns.PATTERNS:
        assert f"{name}(" in shown
    assert "longformer(seq_len, window=5, num_global=2)" in shown


def test_build(tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "lf.safetensors"
    argv = f"patterns build longformer --seq-len 50 --param window=3 num_global=1 -o {file}"
    assert main(argv.split()) == 0
    mask = patterns.longformer(50, window=3, num_global=1)
    assert AttentionMask.load(file) == mask
    assert "50 x 50" in capsys.readouterr().out
    assert main([*argv.split(), "--without-diagonal"]) == 0
    assert AttentionMask.load(file) == mask.without_diagonal()


def test_build_with_a_float_and_without_a_length(tmp_path: Path) -> None:
    file = tmp_path / "mask.safetensors"
    assert main(f"patterns build random --seq-len 30 --param density=0.2 -o {file}".split()) == 0
    assert AttentionMask.load(file) == patterns.random(30, density=0.2)
    grid = f"patterns build neighborhood_2d --param height=4 width=5 kernel_size=3 -o {file}"
    assert main(grid.split()) == 0
    assert AttentionMask.load(file).shape == (1, 1, 20, 20)


# ---------------------------------------------------------------- show and explain


def test_show(star: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["show", star]) == 0
    shown = capsys.readouterr().out
    assert "40 queries x 40 keys" in shown
    assert "100.00% of it allowed" in shown
    assert '"pattern": "star"' in shown
    assert is_png(tmp_path / "star.png")


def test_show_text_draws_nothing(layered: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["show", layered, "--text"]) == 0
    shown = capsys.readouterr().out
    assert "2 layer(s), 2 head(s)" in shown
    assert "1 (queries that attend to nothing)" in shown  # row 0 of the strictly causal head
    assert "1 (keys that nothing attends to)" in shown
    assert "symmetric    no" in shown
    assert not list(tmp_path.glob("*.png"))


def test_show_into_a_new_folder(layered: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "heads.png"
    assert main(["show", layered, "-o", str(picture)]) == 0
    assert is_png(picture)


def test_distinct_heads(layered: str) -> None:
    labels = [label for label, _ in distinct_heads(AttentionMask.load(layered))]
    assert labels == ["layer 0, head 0 and 1 more", "layer 0, head 1", "layer 1, head 1"]


def test_explain_of_many_heads_begins_with_the_total_and_is_bounded(
    tmp_path: Path, capsys: Output
) -> None:
    """12 layers of 12 heads, all different, were 877 lines."""
    layers = [patterns.random(32, density=0.2, seed=seed, num_heads=12) for seed in range(12)]
    file = tmp_path / "many.safetensors"
    AttentionMask.stack_layers(layers).save(file)
    assert main(["explain", str(file), "--text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 layers, each a plan for 12 head(s) of 32 x 32")
    assert "predicted speed-up" in lines[4]
    assert len(lines) < 30
    assert [line.split()[0] for line in lines[6:18]] == [str(index) for index in range(12)]
    assert main(["explain", str(file), "--text", "--details"]) == 0
    full = capsys.readouterr().out
    assert full.count("    why: ") == 144 and full.startswith("\n".join(lines[:5]))
    assert main(["explain", str(file), "--text", "--layer", "3"]) == 0
    one = capsys.readouterr().out.splitlines()
    assert len(one) < 35 and one[0].startswith("plan for 12 head(s)")
    assert main(["explain", str(file), "--text", "--layer", "3", "--details"]) == 0
    assert capsys.readouterr().out.count("    why: ") == 12


def test_explain(star: str, layered: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["explain", star, "--target", "sm90", "--text"]) == 0
    shown = capsys.readouterr().out
    assert "sm90" in shown and "executed fraction" in shown
    assert not list(tmp_path.glob("*.png"))
    assert main(["explain", layered, "--objective", "area"]) == 0
    shown = capsys.readouterr().out
    assert "layer 0\n" in shown and "layer 1\n" in shown
    assert is_png(Path(layered).with_suffix(".tiles.png"))
    assert main(["explain", layered, "--layer", "-1", "-o", str(tmp_path / "one.png")]) == 0
    assert "layer" not in capsys.readouterr().out.splitlines()[0]
    assert is_png(tmp_path / "one.png")


def test_the_colours_of_tiles() -> None:
    """Tiles have colours, waste is grey, what is skipped is white."""
    image = tile_colours(np.array([[0, 1, -1, -2]], dtype=np.int32))[0]
    assert image[2].tolist() == [1.0] * 3
    assert image[3].tolist() == [0.85] * 3
    assert len({tuple(colour) for colour in image.tolist()}) == 4


# ---------------------------------------------------------------- verify


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--dtype bfloat16 --head-dim 16 --key-padding 0.3",
        "--dtype float16 --backend dense --batch 1",
        "--dropout 0.3 --backend torch --heads 3 --key-padding 0.95",
    ],
)
def test_verify(options: str, star: str, capsys: Output) -> None:
    assert main(["verify", star, *options.split()]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:]] == list(verify.QUANTITIES)
    assert shown.count(" ok") == 5


def test_verify_knows_the_backends_that_are_registered(star: str, capsys: Output) -> None:
    assert main(["verify", star, "--backend", "quantum"]) == 2
    known = ("auto", *registry.names())
    assert f"--backend: backend must be one of {known}, got 'quantum'" in capsys.readouterr().err


def test_verify_all_layers(layered: str, capsys: Output) -> None:
    assert main(["verify", layered, "--backend", "torch"]) == 0
    assert capsys.readouterr().out.count(" ok") == 10


@pytest.mark.parametrize("damage", [1e-3, float("nan")])
def test_verify_fails(
    damage: float, star: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    correct = verify.sparse_attention

    def wrong(q: torch.Tensor, *args: object, **kwargs: object) -> object:
        o, lse = correct(q, *args, **kwargs)  # type: ignore[arg-type]
        return o + damage * q, lse

    monkeypatch.setattr(verify, "sparse_attention", wrong)
    assert main(["verify", star]) == 1
    captured = capsys.readouterr()
    assert "exceeds its bound" in captured.err
    failed = {line.split()[0] for line in captured.out.splitlines() if "FAILED" in line}
    assert {"o", "dq"} <= failed
    assert "lse" not in failed


# ---------------------------------------------------------------- the parser itself


def test_every_command_sets_what_it_runs() -> None:
    parser = cli.build_parser()
    chosen = parser.parse_args(["patterns"])
    assert isinstance(chosen, argparse.Namespace) and callable(chosen.run)


def test_help_waits_for_no_library() -> None:
    code = (
        "import sys; from sparsebert.cli import build_parser; build_parser(); "
        "print(*{'torch', 'numpy', 'transformers', 'matplotlib', 'tqdm'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "\n"


@pytest.mark.parametrize("command", ["show", "explain"])
def test_without_matplotlib_it_says_what_to_install(
    command: str, star: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([command, star]) == 2
    assert capsys.readouterr().err.endswith(
        "sparsebert: error: pictures need matplotlib: pip install 'sparsebert[plot]'\n"
    )
    assert main([command, star, "--text"]) == 0
