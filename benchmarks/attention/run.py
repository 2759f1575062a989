"""Run the attention benchmark on this machine.

    python -m benchmarks run                    # every case for this machine, then the report
    python -m benchmarks run --quick            # a look, under a minute; prints a table
    python -m benchmarks run --group vit        # one group; --list names them
    python -m benchmarks run --device cuda --group paper-short --out DIR

    python -m benchmarks run --threads 1 2 --mkl stock avx512     # four settings of a CPU

On a machine with a GPU the cases of the GPU run, else those of the CPU. Results go to
DIR/attention_cpu/GROUP.csv or attention_cuda/GROUP.csv, case by case: Ctrl-C keeps what is done,
and the same command goes on from there if machine, versions and commit are the same. DIR is
--out, else $OUT, else benchmarks/results (with --quick out/bench).

On a CPU all cases are timed for each number of threads, with MKL as it is or made to use AVX-512
on AMD, which takes a C++ compiler (`benchmarks/harness/mkl.py`). SPARSEBERT_CPU_ISA decides what
the native kernels use. Every row says which.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.attention import compare, measure_case, result_files, roofs
from benchmarks.attention.cases import DEVICES, Case, group_names, select
from benchmarks.attention.correctness import WRONG
from benchmarks.attention.rivals import OURS, rivals_on
from benchmarks.harness import errors, mkl
from benchmarks.harness.memory import keep_memory
from benchmarks.harness.options import duration
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.harness.origin import origin as machine_and_commit
from sparsebert.kernels.cpu.build import BuildError
from sparsebert.kernels.cpu.library import load
from sparsebert.machine import threads_for
from sparsebert.reporting.timing import own_clock

SECONDS = {("cpu", "full"): 1.0, ("cpu", "quick"): 0.3}
GPU_SECONDS = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 wrong results or failed cases, 2 unusable input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, under a minute")
    parser.add_argument("--group", nargs="+", default=[], help="only these groups")
    parser.add_argument("--list", action="store_true", help="list groups and leave")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda if there is one")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what is done already")
    parser.add_argument("--minutes", type=duration, help="begin no case after this time")
    parser.add_argument("--seconds", type=duration, help="least time for the rounds of a case")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[None], metavar="T",
        help="CPU threads, one after the other (default: torch's, fewer on a busy machine)",
    )  # fmt: skip
    parser.add_argument(
        "--mkl", nargs="+", choices=mkl.MODES, default=[mkl.active()],
        help="how MKL runs, one after the other (default: as shipped)",
    )  # fmt: skip
    parser.add_argument(
        "--rivals", nargs="*", metavar="NAME", help="only these contenders beside this project"
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(arguments)
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tier = "quick" if chosen.quick else "full"
    try:
        cases = select(device, tier, tuple(chosen.group))
    except ValueError as error:
        parser.error(str(error))
    known = [rival.name for rival in rivals_on(device)]
    for name in chosen.rivals or ():
        if name not in known:
            parser.error(f"--rivals: there is no {name!r}; there are {', '.join(known)}")
    if chosen.list:
        for group in group_names(cases):
            number = sum(case.group == group for case in cases)
            print(f"{group:12} {number:4} cases")
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA or ROCm device; leave --device out")
    usual = ROOT / "out" / "bench" if chosen.quick else RESULTS
    folder = chosen.out or Path(os.environ.get("OUT") or usual)
    status = 0
    if chosen.mkl == [mkl.active()]:
        for threads in chosen.threads:
            with threads_for(given=threads) as sentence:
                print(sentence, flush=True)
                status = max(status, _run_setting(chosen, cases, device, tier, folder))
    else:
        try:
            for mode in chosen.mkl:
                print(f"{mkl.WORDS[mode]}:", flush=True)
                status = max(status, mkl.run_again("benchmarks", ["run", *arguments], mode))
        except BuildError as error:
            parser.error(f"--mkl: {error}")
    if not (chosen.quick or chosen.group or mkl.is_child()):
        _report(folder)
    return status


def _report(folder: Path) -> None:
    try:
        from benchmarks.attention import attention_report
    except ModuleNotFoundError as error:  # a GPU's machine may have torch alone
        print(f"no report here: {error}; python -m benchmarks report makes it from the rows")
        return
    attention_report.main(["--out", str(folder)])


def _run_setting(
    chosen: argparse.Namespace, cases: tuple[Case, ...], device: str, tier: str, folder: Path
) -> int:
    """The cases with torch's threads and MKL as they are now."""
    seconds = chosen.seconds or SECONDS.get((device, tier), GPU_SECONDS)
    store = result_files.Store(
        folder / f"attention_{device}", origin(device, seconds), fresh=chosen.fresh
    )
    rivals = None if chosen.rivals is None else tuple(chosen.rivals)
    status = run(cases, device, store, seconds, chosen.minutes, rivals)
    print(f"rows: {store.folder}")
    rows = store.rows(cases)
    if rows and (chosen.quick or chosen.group):
        try:
            from benchmarks.attention import attention_tables
        except ModuleNotFoundError as error:  # a GPU's machine may have torch alone
            print(f"no tables here: {error}")
            return status
        print("SDPA's time with the same mask over ours, forward / forward + backward:\n")
        tables = [*attention_tables.summary(rows), "", *attention_tables.group_table(rows)]
        print("\n".join(tables))
    return status


def run(
    cases: tuple[Case, ...],
    device: str,
    store: result_files.Store,
    seconds: float,
    minutes: float | None = None,
    rivals: tuple[str, ...] | None = None,
) -> int:
    """Measure what the store does not have; see `main` for the exit status.

    `rivals` are the names of those that run, None for all.
    """
    done = store.done(cases)
    left = [case for case in cases if case.key not in done]
    print(
        f"{len(cases)} cases on {store.origin['processor']}, {len(done)} of them done before",
        flush=True,
    )
    if not left:
        return _report_wrong(store.rows(cases))
    keep_memory()
    start = time.monotonic()
    finished = 0
    shape: tuple[object, ...] = ()
    try:
        limits = roofs.measure(device, {case.dtype for case in left})
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in limits.matrix_tflop_s.items())
        print(f"copy {limits.copy_gb_s:.1f} GB/s, matrices {rates} TFLOP/s", flush=True)
        for case in (bar := tqdm(left, unit="case", smoothing=0.1)):
            if minutes is not None and time.monotonic() - start > 60 * minutes:
                print(f"\n{len(left) - finished} cases left; the same command goes on from here")
                break
            bar.set_postfix_str(str(case))
            of_case = (case.batch, case.heads, case.length, case.dim, case.dtype)
            if of_case != shape:  # FlexAttention compiles for each shape
                torch.compiler.reset()
                shape = of_case
            store.add(case, _rows_of(case, device, limits, seconds, rivals))
            finished += 1
    except KeyboardInterrupt:
        print(f"\nstopped; {finished} cases are kept, the same command goes on from here")
        return 130
    return _report_wrong(store.rows(cases))


def _rows_of(
    case: Case,
    device: str,
    limits: roofs.Roofs,
    seconds: float,
    rivals: tuple[str, ...] | None,
) -> list[measure_case.Values]:
    """The case's rows, or a single one that says that it failed as a whole."""
    try:
        return list(measure_case.rows_of(case, device, limits, seconds, rivals))
    except Exception as error:  # out of memory, say: the other cases do not depend on this one
        if errors.is_fatal(error):
            raise
        note = f"{result_files.FAILED} {errors.in_a_line(error)}"
        return [{"contender": OURS, "note": note}]


def _report_wrong(rows: list[result_files.Row]) -> int:
    """Print what was wrong or failed; the exit status."""
    wrong = [row for row in rows if row["note"].startswith((WRONG, result_files.FAILED))]
    for row in wrong:
        print(f"{compare.describe(row)}: {row['contender']}: {row['note']}")
    return 1 if wrong else 0


def origin(device: str, seconds: float) -> result_files.Row:
    """The provenance columns of this run."""
    cpu = device == "cpu"
    return {
        **machine_and_commit(device),
        "device": device,
        "mkl": mkl.active() if cpu else "",
        "isa": _instruction_set() if cpu else "",
        "python": platform.python_version(),
        "triton": _triton_version(),
        "method": f"{seconds:g} s a case, inputs rotate, {own_clock()[1] if cpu else 'time'}",
    }


def _instruction_set() -> str:
    """Of the native kernels: "avx512", or with what it has beside, "avx512 bf16"."""
    native = load()
    return " ".join(filter(None, (native.isa, *native.features)))


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)
