"""The table of steps: rows are replaced by case, and the page is made of the committed rows."""

from benchmarks.harness.rows import RowFile
from benchmarks.kernels import kernel_steps


def made_up(step, rows, triton, per_1000):
    row = dict.fromkeys(kernel_steps._COLUMNS, "")
    return row | {
        "step": step, "kernel": "dq", "rows": rows, "key_mask": "False", "triton": triton,
        "per_1000": per_1000, "block_m": "64", "block_n": "32", "num_warps": "1",
        "num_stages": "3",
    }  # fmt: skip


def test_a_step_that_is_counted_again_replaces_its_rows_of_that_triton():
    old = [
        made_up("before", "64", "3.6.0", "1"),
        made_up("before", "64", "3.9.0", "2"),
        made_up("after", "64", "3.9.0", "3"),
    ]
    new = [made_up("before", 64, "3.9.0", "4"), made_up("before", 32, "3.9.0", "5")]
    rows = kernel_steps.with_step(old, new)
    assert [(row["step"], row["per_1000"]) for row in rows] == [
        ("before", "1"), ("before", "4"), ("before", "5"), ("after", "3"),
    ]  # fmt: skip


def test_the_page_shows_step_after_step():
    rows = [
        made_up("after", "64", "3.9.0", "30 / 40") | {"maxnreg": "128"},
        made_up("before", "16", "3.9.0", "") | {"error": "does not compile"},
        made_up("before", "64", "3.9.0", "10 / 20"),
    ]
    lines = [line for line in kernel_steps.page(rows).splitlines() if line.startswith("| dq")]
    assert lines[0].startswith(
        "| dq | 64 |  | 3.9.0 | after | 64 x 32, 1 warp, 3 stages, at most 128 registers | 30 / 40"
    )
    assert "| before | 64 x 32, 1 warp, 3 stages | 10 / 20 |" in lines[1]
    assert "does not compile" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_the_committed_page_is_of_the_committed_rows():
    rows = RowFile(kernel_steps.STEPS, kernel_steps._COLUMNS).read()
    assert kernel_steps.STEPS.with_suffix(".md").read_text() == kernel_steps.page(rows)
    assert {row["triton"] for row in rows if row["step"] == "before"} == {"3.6.0", "3.9.0"}
    assert not any(row["error"] for row in rows)
    assert not any(int(row["hazards"]) for row in rows)
