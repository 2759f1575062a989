"""Run the numeric tests as on other processors: `make test-isa`, or `python tests/isa.py --one`.

torch, oneDNN and MKL choose their code by the processor, and each choice rounds in another order;
so do the native kernels. Together the settings hold every pair of ATen's instruction set with
oneDNN's and with the number of threads, and every instruction set of the native kernels with 1
thread and with 2. What the processor at hand lacks is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsebert.cli.options import positive

ROOT = Path(__file__).parents[1]
ATEN = "ATEN_CPU_CAPABILITY"
ORDER = ("default", "avx2", "avx512")
NATIVE = "SPARSEBERT_CPU_ISA"
NUMERIC = (
    "attention/test_autograd.py",
    "attention/test_dropout.py",
    "attention/test_error_bounds.py",
    "attention/test_modules.py",
    "attention/test_reference.py",
    "attention/test_sparse_attention.py",
    "backends/test_native.py",
    "backends/test_routes.py",
    "dam/test_gates.py",
    "huggingface/test_dam_attached.py",
    "huggingface/test_attention.py",
    "huggingface/test_api.py",
    "huggingface/test_positions.py",
)
OLD = {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
SETTINGS: tuple[dict[str, str], ...] = (
    {ATEN: "default", NATIVE: "generic", "OMP_NUM_THREADS": "1", **OLD},
    {ATEN: "default", NATIVE: "generic", "OMP_NUM_THREADS": "2"},
    {ATEN: "avx2", NATIVE: "avx2", "OMP_NUM_THREADS": "2", **OLD},
    {ATEN: "avx2", NATIVE: "avx2", "OMP_NUM_THREADS": "1"},
    {ATEN: "avx512", NATIVE: "avx512", "OMP_NUM_THREADS": "1", **OLD},
    {ATEN: "avx512", NATIVE: "avx512", "OMP_NUM_THREADS": "2"},
)


def machine_capability() -> str:
    """What ATen chooses by itself here: "default", "avx2" or "avx512" (others count as none)."""
    name = _printed("import torch; print(torch.backends.cpu.get_cpu_capability())").lower()
    return name if name in ORDER else "default"


def native_isas() -> tuple[str, ...]:
    """The instruction sets that the native kernels can run here; () if they are not built."""
    found = _printed("from sparsebert.kernels.cpu.library import load; print(*load().isas)")
    return tuple(found.split())


def _printed(code: str) -> str:
    """What Python code prints in an environment without these settings."""
    plain = {name: value for name, value in os.environ.items() if name not in (ATEN, NATIVE)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=plain, cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def selected(capability: str, isas: Sequence[str], *, one: bool) -> list[dict[str, str]]:
    """The settings that this processor can run; with `one` the first that is not its own.

    `isas` are those of the native kernels. One that no setting has gets two of its own, and where
    the kernels cannot run a setting's they take their best.
    """
    able = [s for s in SETTINGS if ORDER.index(s[ATEN]) <= ORDER.index(capability)]
    able = [{k: v for k, v in s.items() if k != NATIVE or v in isas} for s in able]
    missing = [isa for isa in isas if all(isa != s.get(NATIVE) for s in able)]
    able += [
        {ATEN: capability, NATIVE: isa, "OMP_NUM_THREADS": threads}
        for isa in missing
        for threads in ("1", "2")
    ]
    return able[:1] if one else able


def main(argv: list[str] | None = None) -> int:
    """Run pytest once for each setting; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--one", action="store_true", help="one that is not the machine's own")
    parser.add_argument("--jobs", type=positive, default=2, help="threads at work (default: 2)")
    arguments, pytest_args = parser.parse_known_args(argv)
    capability, isas = machine_capability(), native_isas()
    runs = selected(capability, isas, one=arguments.one)
    failed = 0
    for setting in runs:
        print("==>", *(f"{name}={value}" for name, value in setting.items()), flush=True)
        processes = max(1, arguments.jobs // int(setting["OMP_NUM_THREADS"]))
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(processes), *pytest_args]
        files = [str(ROOT / "tests" / name) for name in NUMERIC]
        done = subprocess.run([*command, *files], env={**os.environ, **setting}, cwd=ROOT)
        failed += done.returncode != 0
    if not arguments.one:
        left_out = [name for name in ORDER if ORDER.index(name) > ORDER.index(capability)]
        for name in left_out:
            print(f"==> left out: {ATEN}={name}, which this processor lacks")
        for name in sorted({s[NATIVE] for s in SETTINGS} - set(isas)):
            print(f"==> left out: {NATIVE}={name}, which the native kernels cannot run here")
    print(f"==> {len(runs) - failed} of {len(runs)} settings passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
