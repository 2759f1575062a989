"""Tables: as text, as Markdown and as CSV."""

import csv
from pathlib import Path

from sparsebert.reporting import tables
from sparsebert.reporting.timing import Spread


def test_tables(tmp_path: Path) -> None:
    columns = [tables.Column("name", "pattern"), tables.Column("x", "share", "{:.1%}".format)]
    rows = [{"name": "star", "x": 0.0387, "extra": 1}, {"name": "dense", "x": 1.0, "extra": 2}]
    assert tables.as_text(rows, columns).splitlines() == [
        "  pattern   share",
        "  -------  ------",
        "  star       3.9%",
        "  dense    100.0%",
    ]
    assert tables.as_markdown(rows, columns).splitlines()[1:3] == [
        "| :-- | --: |",
        "| star | 3.9% |",
    ]
    tables.write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file)) == {"name": "star", "x": "0.0387", "extra": "1"}
    tables.write_csv([{"ms": ""}, {"ms": Spread(1.0, 2.0, 3.0, 7)}], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == [
        "ms,ms_p20,ms_p80,ms_rounds", ",,,", "2.0,1.0,3.0,7"
    ]  # fmt: skip
