"""What the timing model takes for granted: machines, and how fast the rivals are on them.

Peaks are the vendors'; what is reached of them, latencies and rivals are assumptions. Nothing here
was measured by this project.
"""

from __future__ import annotations

import dataclasses

from benchmarks.attention.cases import TOKENS


@dataclasses.dataclass(frozen=True)
class Machine:
    """A GPU, in what the kernels need of it.

    Attributes:
        arch: the target that kernels are compiled for.
        units: SMs, or compute units.
        clock: cycles a second, under load.
        issue: instructions of a warp (a wavefront on AMD) that a unit issues in a cycle.
        exponentials: that a unit takes in a cycle.
        tensor_flops: floating-point operations of a unit's tensor cores in a cycle, operands in
            shared memory (wgmma, tcgen05) where the architecture can do that.
        register_flops: the same with operands in registers (mma.sync, mfma).
        reached: share of all these rates that a kernel reaches at best.
        l2, hbm: bytes a second that are reached.
        l2_bytes: size of the L2.
        trip: cycles of one dependent trip to memory, most of which hit L2.
        launch: seconds that a launch costs beside its work.
        source: where these come from.
    """

    arch: str
    units: int
    clock: float
    issue: float
    exponentials: float
    tensor_flops: float
    register_flops: float
    reached: float
    l2: float
    hbm: float
    l2_bytes: float
    trip: float
    launch: float
    source: str

    @property
    def name(self) -> str:
        """What the source begins with."""
        return self.source.partition(":")[0]


H100 = Machine(
    arch="sm90", units=132, clock=1.70e9, issue=4.0, exponentials=16.0, tensor_flops=4096.0,
    register_flops=2500.0, reached=1.0, l2=5.5e12, hbm=3.0e12, l2_bytes=50e6, trip=500.0,
    launch=3e-6,
    source=(
        "H100 SXM: data sheet (132 SMs, 989 TFLOP/s dense in bf16 at 1.83 GHz, HBM3 3.35 TB/s, of "
        "which nine tenths are taken to be reached; L2 50 MB); clock under load, L2 rate, "
        "latencies and mma.sync's rate (about 61 % of wgmma's) after published "
        "microbenchmarks (arXiv 2402.13499, 2501.12084; chipsandcheese.com, 2 July 2023)"
    ),
)  # fmt: skip
H200 = dataclasses.replace(
    H100, hbm=4.3e12, source=f"H200: as H100 but HBM3e, 4.8 TB/s, nine tenths of it; {H100.source}"
)
A100 = Machine(
    arch="sm80", units=108, clock=1.41e9, issue=4.0, exponentials=16.0, tensor_flops=2048.0,
    register_flops=2048.0, reached=0.75, l2=4.0e12, hbm=1.8e12, l2_bytes=40e6, trip=450.0,
    launch=3e-6,
    source="A100 SXM 80 GB: data sheet (108 SMs, 312 TFLOP/s, HBM2e 2.04 TB/s, nine tenths of it; "
    "L2 40 MB), the rest as H100, but three quarters of it reached, so that a dense loop takes as "
    "long as FlashAttention-2's at 180 TFLOP/s",
)  # fmt: skip
B200 = Machine(
    arch="sm100", units=148, clock=1.80e9, issue=4.0, exponentials=16.0, tensor_flops=8192.0,
    register_flops=2500.0, reached=1.0, l2=8.0e12, hbm=7.2e12, l2_bytes=120e6, trip=550.0,
    launch=3e-6,
    source="B200: data sheet (148 SMs, 2250 TFLOP/s, HBM3e 8 TB/s, nine tenths of it), L2 "
    "guessed, the rest as H100",
)  # fmt: skip
MI300X = Machine(
    arch="gfx942", units=304, clock=1.9e9, issue=1.0, exponentials=16.0, tensor_flops=2048.0,
    register_flops=2048.0, reached=1.0, l2=8.0e12, hbm=4.2e12, l2_bytes=256e6, trip=700.0,
    launch=5e-6,
    source="MI300X: data sheet (304 compute units, 1307 TFLOP/s at 2.1 GHz, HBM3 5.3 TB/s, eight "
    "tenths of it; the 256 MB cache stands for the L2), issue, latency and launches guessed",
)  # fmt: skip

MACHINES = {"H100": H100, "H200": H200}
"""Those of the table of predictions."""

BY_ARCH = {machine.arch: machine for machine in (A100, H100, B200, MI300X)}
"""Those that the cost model's constants stand for: of two with one target that with slower HBM, on
which what moves more costs most.
"""


@dataclasses.dataclass(frozen=True)
class Rival:
    """An assumed rate on H100 and H200, D = 64 in bf16, by length, in floating-point operations a
    second of what it computes: 4 N^2 D a head forward, 2.5 times that backward.

    Attributes:
        forward, backward: the rates.
        tensors: those moved forward and backward, which bound it, of batch x H x N x D.
        overhead: seconds beside that, forward and backward.
        source: where the rates come from.
    """

    forward: dict[int, float]
    backward: dict[int, float]
    tensors: tuple[float, float]
    overhead: tuple[float, float]
    source: str

    def seconds(self, n: int, heads: int, dim: int, share: float, hbm: float, which: int) -> float:
        """Forward (`which` 0) or backward (1) time of TOKENS tokens, given the share of the N x N
        scores that it computes.
        """
        rate = (self.forward, self.backward)[which][n]
        flops = 4.0 * n * dim * heads * TOKENS * share * (1.0, 2.5)[which]
        moved = self.tensors[which] * TOKENS * heads * dim * 2 / hbm
        return max(flops / rate, moved) + self.overhead[which]


DENSE = Rival(
    forward={512: 330e12, 1024: 400e12, 2048: 440e12, 4096: 460e12},
    backward={512: 250e12, 1024: 320e12, 2048: 370e12, 4096: 400e12},
    tensors=(4.0, 10.0),
    overhead=(0.0, 0.0),
    source="dense attention, the better of cuDNN and FlashAttention-3 as published for D = 64 "
    "without causal mask (arXiv 2407.08608, figure 5: 335 to 476 TFLOP/s forward)",
)
FLEX = Rival(
    forward=dict.fromkeys((512, 1024, 2048, 4096), 250e12),
    backward=dict.fromkeys((512, 1024, 2048, 4096), 190e12),
    tensors=(4.0, 13.0),
    overhead=(4e-6, 12e-6),
    source="FlexAttention with a mask's formula, over its 128 x 128 blocks that are not empty: "
    "assumed, about two thirds of the dense rate",
)
