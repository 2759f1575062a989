"""The sweep over launch configurations, with made-up times in place of a GPU."""

import time

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.attention.cases import PAPER
from benchmarks.gpu import sweep
from benchmarks.gpu.sweep import LENGTHS, Candidate, best, candidates
from benchmarks.harness.workers import LostDevice
from sparsebert.kernels.configs import LaunchConfig, shared_limit
from tests.benchmarks.gpu.rows import Rows

TODO = candidates("sm90")


def swept(check=lambda candidate: "", timed=None, todo=TODO, seconds=600.0, known=()):
    timed = timed or (lambda candidate, mask, n: {"ms_50": 1.0})
    end = time.monotonic() + seconds
    return list(sweep.rows(todo, end, seconds, jobs=0, known=known, check=check, timed=timed))


def of_kernel(kernel, height=64):
    return [c for c in TODO if (c.entry.kernel, c.entry.height) == (kernel, height)]


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
def test_about_a_dozen_of_each_kernel_the_shipped_ones_first(kernel):
    mine = [c for c in TODO if c.entry.kernel == kernel]
    assert 10 <= len(mine) <= 16 and len(set(mine)) == len(mine)
    assert of_kernel(kernel)[0].row["shipped"]
    assert {c.config.maxnreg for c in mine} > {None} and {c.config.block_n for c in mine} > {64}
    for candidate in mine:
        config, entry = candidate.config, candidate.entry
        assert entry.height % config.block_m == 0 and config.num_warps in (1, 2, 4, 8)
        in_flight = 2 * config.block_n * 64 * 2 * max(1, config.num_stages - 1)
        assert in_flight <= shared_limit("sm90")


def test_what_is_promising_comes_early():
    shipped = [c.row["shipped"] for c in TODO]
    entries = len({c.entry for c in TODO})
    assert all(shipped[:entries]) and not any(shipped[entries:])
    assert len({c.entry.kernel for c in TODO[entries : entries + 3]}) >= 1


def test_every_plan_of_the_longest_length_comes_first():
    found = swept()
    assert [row["n"] for row in found] == sorted((row["n"] for row in found), reverse=True)
    assert len(found) == len(TODO) * len(PAPER) * len(LENGTHS)
    assert all(row["passed"] is True for row in found)


def test_only_what_is_right_is_timed():
    wrong, broken, lost = *of_kernel("dq")[1:3], of_kernel("dkdv")[0]

    def check(candidate):
        if candidate == broken:
            return "CompilationError: does not compile"
        if candidate == lost:
            raise LostDevice("CUDA error")
        return "wrong: dq" if candidate in (wrong, TODO[0]) else ""

    timed = []
    found = swept(check, lambda candidate, *plan: timed.append(candidate) or {"ms_50": 1.0})
    assert {wrong, broken, lost, TODO[0]}.isdisjoint(timed) and len(set(timed)) == len(TODO) - 4
    rejected = {Candidate.of(row): row for row in found if "mask" not in row}
    assert rejected[TODO[0]]["passed"] is False  # what is shipped is red
    assert rejected[lost]["passed"] is False
    assert rejected[wrong]["passed"] is None and "does not compile" in rejected[broken]["why"]


def test_a_plan_without_such_tiles_has_no_row_and_a_failure_has_one():
    def timed(candidate, mask, n):
        if mask == "star":
            return {}
        raise RuntimeError("out of shared memory")

    found = swept(timed=timed, todo=TODO[:1])
    assert {row["mask"] for row in found} == set(PAPER) - {"star"}
    assert all(row["passed"] is None and "shared memory" in row["why"] for row in found)


def test_a_candidate_that_loses_the_gpu_is_not_tried_again_and_the_others_are():
    def timed(candidate, mask, n):
        if candidate == TODO[0]:
            raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
        return {"ms_50": 1.0}

    first, *others = swept(timed=timed, todo=TODO[:2])
    assert Candidate.of(first) == TODO[0] and "illegal memory access" in first["why"]
    assert {Candidate.of(row) for row in others} == {TODO[1]}
    assert len(others) == len(PAPER) * len(LENGTHS)


def test_it_ends_in_time_and_goes_on_where_it_stopped():
    calls = []

    def slow(candidate, mask, n):
        calls.append((candidate, mask, n))
        time.sleep(0.05)
        return {"ms_50": 1.0}

    first = swept(timed=slow, todo=TODO[:3], seconds=0.3)
    assert 0 < len(calls) < 18 and "out of time" in first[-1]["why"]
    known = [row for row in first if "kernel" in row]
    checked = []
    rest = swept(lambda c: checked.append(c) or "", todo=TODO[:3], known=known)
    done = {(row["kernel"], row["height"], row["mask"], row["n"]) for row in rest}
    assert len(rest) == 3 * len(PAPER) * len(LENGTHS) - len(known)
    assert done.isdisjoint((r["kernel"], r["height"], r["mask"], r["n"]) for r in known)
    assert set(checked).isdisjoint(Candidate.of(row) for row in known)


def test_want_of_time_rejects_nothing():
    first = swept(todo=TODO[:2], seconds=-1.0)
    assert all(row["passed"] is None for row in first)
    rest = swept(todo=TODO[:2], known=[row for row in first if "kernel" in row])
    assert len(rest) == 2 * len(PAPER) * len(LENGTHS)


def test_rows_name_their_candidate():
    for candidate in TODO:
        assert Candidate.of(candidate.row) == candidate


def test_the_best_is_the_fastest_over_all_plans():
    shipped, *others = of_kernel("forward")
    faster, only_once, slower = others[:3]
    factor = {shipped: 1.0, faster: 0.8, only_once: 0.1, slower: 1.5}

    def timed(candidate, mask, n):
        if candidate == only_once and mask != "star":
            raise RuntimeError("did not fit")
        return {"ms_50": factor[candidate] * n}

    (found,) = best(swept(timed=timed, todo=list(factor))).items()
    key, (config, gain) = found
    assert key == shipped.entry.key and config == faster.config and gain == pytest.approx(1.25)


def test_nothing_is_best_without_the_shipped_one():
    assert best(swept(todo=of_kernel("dq")[1:3])) == {}


def test_a_length_that_is_not_whole_counts_for_nothing():
    shipped, other = of_kernel("dkdv")[:2]

    def timed(candidate, mask, n):
        if candidate == other and n == 2048 and mask == "star":
            return {}
        return {"ms_50": 1.0 if candidate == shipped or n == 2048 else 2.0}

    ((_, (config, gain)),) = best(swept(timed=timed, todo=[shipped, other])).items()
    assert config == shipped.config and gain == 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_phase_says_so():
    rows = Rows()
    sweep.sweep(5.0, rows)
    assert rows.only()["passed"] is None and "no CUDA" in rows.only()["why"]


def test_a_candidate_is_a_configuration():
    assert all(isinstance(candidate.config, LaunchConfig) for candidate in TODO)
