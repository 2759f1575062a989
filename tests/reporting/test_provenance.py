"""Where results come from: the commit of the checkout, and whether it is what was committed."""

import subprocess
from pathlib import Path

import torch

from sparsebert.reporting.provenance import in_words, provenance


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_the_tree_is_clean(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/a.csv"):
        (tmp_path / name).write_text("1", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")

    def about(**options: str) -> tuple[str, str]:
        found = provenance("cpu", checkout=tmp_path, **options)
        return found["commit"], found["tree"]

    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (tmp_path / "untracked").touch()
    assert about() == (commit, "clean")
    (tmp_path / "results/a.csv").write_text("2", encoding="utf-8")
    assert about() == (commit, "dirty")
    assert about(results="results") == (commit, "clean")
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert about(results="results") == (commit, "dirty")


def test_a_folder_in_another_checkout_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    found = provenance("cpu", checkout=tmp_path / "site-packages")
    assert (found["commit"], found["tree"]) == ("unknown", "unknown")
    assert "commit" not in in_words(found) and f"torch {torch.__version__}" in in_words(found)


def test_provenance_names_the_machine() -> None:
    about = provenance("cpu")
    assert about["threads"] == str(torch.get_num_threads())
    assert about["processor"]
