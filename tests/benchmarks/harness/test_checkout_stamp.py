"""A checkout that was copied without git still knows its commit, and whether it was changed."""

import json
import shutil
import subprocess

import pytest

from benchmarks.harness import checkout_stamp, origin


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit: code, and results."""
    root = tmp_path / "here"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "code.py").write_text("x = 1\n")
    (root / "benchmarks" / "results" / "rows.csv").write_text("a\n1\n")
    (root / ".gitignore").write_text("build/\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def copied(root):
    """The files without git, as they arrive elsewhere."""
    other = root.parent / "there"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns(".git"))
    return other


def test_a_copy_knows_its_commit(checkout):
    assert "stamped" in checkout_stamp.write(checkout / "build", checkout, "benchmarks/results")
    there = copied(checkout)
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True
    )
    expected = {"commit": done.stdout.strip(), "tree": "clean"}
    assert checkout_stamp.read(there / "build", there) == expected
    (there / "benchmarks" / "results" / "rows.csv").write_text("a\n2\n")  # no code
    assert checkout_stamp.read(there / "build", there) == expected


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_changed_copy_is_dirty(checkout, change):
    checkout_stamp.write(checkout / "build", checkout, "benchmarks/results")
    there = copied(checkout)
    if change == "edited":
        (there / "code.py").write_text("x = 2\n")
    else:
        (there / "code.py").unlink()
    assert checkout_stamp.read(there / "build", there)["tree"] == "dirty"


def test_a_dirty_tree_gets_no_stamp_and_loses_an_old_one(checkout):
    checkout_stamp.write(checkout / "build", checkout, "benchmarks/results")
    (checkout / "code.py").write_text("x = 2\n")
    assert "dirty" in checkout_stamp.write(checkout / "build", checkout, "benchmarks/results")
    assert checkout_stamp.read(checkout / "build", checkout) == {}


def test_without_git_there_is_no_stamp(checkout):
    there = copied(checkout)
    assert "no git" in checkout_stamp.write(there / "build", there, "benchmarks/results")
    assert not (there / "build").exists()


def test_rows_of_a_copy_have_its_commit(tmp_path, monkeypatch):
    from sparsebert.reporting import provenance

    nobody = {"commit": "unknown", "tree": "unknown", "processor": "some GPU"}
    monkeypatch.setattr(provenance, "provenance", lambda *a, **k: nobody)
    monkeypatch.setattr(origin, "CARRIED", tmp_path)
    assert origin.origin() == nobody
    stamp = {"commit": "abc1234", "files": {"no such file": "missing"}}
    (tmp_path / checkout_stamp.NAME).write_text(json.dumps(stamp))
    assert origin.origin() == nobody | {"commit": "abc1234", "tree": "clean"}
