"""Processes that cannot take each other with them."""

import time

import pytest

from benchmarks.harness import workers
from tests.benchmarks.harness.worker_tasks import Unreadable, double_or


def test_a_task_that_goes_wrong_costs_itself_alone():
    lost = "fail for want of a GPU"
    tasks = [1, "die", 2, "lose", 3, "hang", 4, "fail", 5, lost, 6]
    end = time.monotonic() + 100.0
    found = dict(workers.results_of(double_or, tasks, 1, end=end, limit=3.0))
    assert [found[task] for task in range(1, 7)] == [2, 4, 6, 8, 10, 12]
    assert found["fail"] == workers.Failure("ValueError: no such thing")
    assert found[lost].wrong and "illegal memory access" in found[lost].why
    assert found["die"] == workers.Failure("its process died, exit status 7")
    assert found["lose"].wrong and "illegal memory access" in found["lose"].why
    assert "no result after 3 s" in found["hang"].why and not found["hang"].wrong


def test_at_the_end_of_its_time_what_runs_is_given_up():
    end = time.monotonic() + 1.0
    found = dict(workers.results_of(double_or, ["hang", 2], 1, end=end, limit=100.0))
    assert found == dict.fromkeys(("hang", 2), workers.Failure("out of time"))


def test_a_process_that_dies_before_it_reads_its_task_costs_that_task_alone():
    end = time.monotonic() + 100.0
    found = dict(workers.results_of(Unreadable(), [1, 2], 1, end=end, limit=30.0))
    assert found == dict.fromkeys((1, 2), workers.Failure("its process died, exit status 8"))


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_task_that_has_become_pointless_is_left_out(jobs):
    end, pointless, found = time.monotonic() + 100.0, set(), {}
    for task, result in workers.results_of(
        double_or, [1, 2, 3], jobs, end=end, limit=30.0, is_pointless=pointless.__contains__
    ):
        found[task] = result
        pointless.add(2)
    assert found == {1: 2, 3: 6}
