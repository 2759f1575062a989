"""`python -m benchmarks.mutants`: how many small faults in the code the tests would notice.

Draws faults by a seed, puts each into a copy of the project, and runs the tests of its area
there. Prints the share that was caught for each area and every survivor; the exit status says
whether the run was sound, not how many were caught. Ours, for none of the tools serves: mutmut 3
skips every decorated function, so all Triton kernels, and draws no sample; cosmic-ray rewrites
the working tree, starts Python afresh for each fault and knows one test command; mutatest ended
with Python 3.8, and its faults are in byte code, where Triton does not look.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import zip_longest
from pathlib import Path

from benchmarks.harness.options import duration, positive
from benchmarks.mutants.areas import GROUPS, WARM, sources_of
from benchmarks.mutants.faults import Fault
from benchmarks.mutants.mutants_report import read_explained, stale, survivors, table
from benchmarks.mutants.trials import Campaign, Trial, all_faults, sample

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("explained.toml")


def parser() -> argparse.ArgumentParser:
    areas = sorted({group.area for group in GROUPS})
    parse = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants",
        description="Put small faults into a copy of the code; report which the tests notice.",
    )
    parse.add_argument("--seed", type=int, default=0, help="another seed, other faults")
    parse.add_argument("--count", type=positive, default=10, help="faults of each area (10)")
    parse.add_argument("--area", action="append", choices=areas, help="only this one; repeatable")
    parse.add_argument("--file", action="append", default=[], help="only this source; repeatable")
    parse.add_argument("--minutes", type=duration, default=60, help="start none after that (60)")
    parse.add_argument("--jobs", type=positive, default=1, help="faults tried at a time (1)")
    parse.add_argument(
        "--tests", nargs="+", metavar="PATTERN", help="only these tests, for a first look"
    )
    parse.add_argument(
        "--trust", action="store_true", help="take the tests to be green without faults, unseen"
    )
    parse.add_argument("--survivors", type=Path, help="also write the survivors to this file")
    parse.add_argument("--table", type=Path, help="also write the table, as Markdown, here")
    parse.add_argument("--pytest", default="", help="more arguments for pytest, in one string")
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when faults were tried; 1 when the tests of some are red without them."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: copies are removed
    groups = GROUPS
    if options.tests:
        groups = tuple(dataclasses.replace(group, tests=options.tests) for group in GROUPS)
    faults = all_faults(ROOT, groups)
    explained = read_explained(EXPLAINED)
    for entry in stale(explained, faults):
        print(f"{EXPLAINED.name}: matches no fault any more: {entry.file}: {entry.line}")

    by_area: dict[str, list[Fault]] = defaultdict(list)
    owner = sources_of(ROOT)
    for file, found in faults.items():
        area = owner[file].area
        if area in (options.area or [area]) and file in (options.file or [file]):
            by_area[area] += found
    chosen = [
        sample(ROOT, found, options.count, f"{options.seed} {area}")
        for area, found in by_area.items()
    ]
    drawn = [fault for turn in zip_longest(*chosen) for fault in turn if fault is not None]
    known = [fault for fault in drawn if any(entry.covers(fault) for entry in explained)]
    open_ = [fault for fault in drawn if fault not in known]

    campaign = Campaign(ROOT, groups, WARM, shlex.split(options.pytest), trust=options.trust)
    status = 0
    try:
        campaign.run(open_, options.jobs, options.minutes)
    except KeyboardInterrupt:
        status = 130  # and what there is until now
    trials = [Trial(owner[fault.file].area, fault, "explained") for fault in known]
    trials += campaign.trials

    left = Counter(owner[f.file].area for f in open_) - Counter(t.area for t in trials)
    text = table(trials, {area: len(found) for area, found in by_area.items()})
    about = f"Seed {options.seed}, {options.count} faults an area, {commit()}, {today()}."
    if options.tests:
        about += f" By {' '.join(options.tests)} alone: other tests may notice what survived."
    if left.total():
        about += f" Drawn and not tried: {dict(left)}."
    listed = survivors(trials)
    print(f"\n{listed}\n\n{about}\n\n{text}")
    if options.survivors:
        options.survivors.write_text(listed + "\n" if listed else "", encoding="utf-8")
    if options.table:
        head = "# Small faults that the tests notice\n\n"
        options.table.write_text(f"{head}{about}\n\n{text}\n", encoding="utf-8")
    for message in campaign.red.values():
        print(message, file=sys.stderr)
    return status or int(bool(campaign.red))


def commit() -> str:
    """The commit, and whether files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    dirty = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{dirty}"


def today() -> str:
    return datetime.date.today().isoformat()


if __name__ == "__main__":
    sys.exit(main())
