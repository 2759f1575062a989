"""Files of rows: what is written is read again, whatever a run was cut short in."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import origin
from benchmarks.harness.rows import RowFile

COLUMNS = ("mask", "n", "note")
ROWS = [{"mask": "star", "n": "1", "note": "a, b"}, {"mask": "fixed", "n": "2", "note": ""}]


@pytest.fixture(params=[COLUMNS, None], ids=["csv", "jsonl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> RowFile:
    return RowFile(tmp_path / "new" / "rows", request.param)


def test_rows_are_read_as_they_were_added(file: RowFile) -> None:
    for row in ROWS:
        file.append([row])
    assert file.read() == ROWS
    file.write(reversed(ROWS))
    assert file.read() == ROWS[::-1]
    assert file.path.read_text().count("mask") == (1 if file.columns else 2)


def test_half_a_row_costs_itself_alone(file: RowFile) -> None:
    file.append(ROWS)
    whole = file.path.read_text()
    file.path.write_text(whole[: whole.index("fixed") + 3])
    assert file.read() == ROWS[:1]
    file.append(ROWS[1:])
    assert file.read() == ROWS


def test_a_row_may_lack_columns(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.csv", COLUMNS)
    file.append([{"n": 3}])
    assert file.read() == [{"mask": "", "n": "3", "note": ""}]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv: no column mask, n, note; .* of make bench"):
        RowFile(tmp_path / "rows.csv", COLUMNS, made_by="make bench").read()


def test_only_rows_of_the_same_origin_are_of_this_run(tmp_path: Path) -> None:
    def of(columns: tuple[str, ...] | None, **origin: str) -> RowFile:
        return RowFile(tmp_path / "rows", columns, origin={"date": "1", **origin})

    for columns in (COLUMNS, None):
        assert of(columns, commit="a").of_this_run() == []
        of(columns, commit="a").append(ROWS[:1])
        of(columns, commit="b").append(ROWS[1:])
        (found,) = of(columns, commit="a", date="2").of_this_run()
        assert found == {**ROWS[0], "commit": "a", "date": "1"}
        of(columns, commit="c").write(of(columns, commit="a").read())  # keeps what rows say
        assert [row["commit"] for row in of(columns).read()] == ["a", "b"]
        (tmp_path / "rows").write_text("a,b\n")
        assert of(columns, commit="a").of_this_run() == []
        (tmp_path / "rows").unlink()


def test_every_row_says_where_it_comes_from() -> None:
    assert tuple(origin.origin()) == origin.COLUMNS
    assert origin.RESULTS.is_dir()
