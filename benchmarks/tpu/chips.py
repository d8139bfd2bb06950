"""The TPUs kernels are compiled for, as data. A device is what jax calls one: what a program without sharding runs on.

Published figures (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm) are of a chip; a chip of v4 and of
tpu7x is two devices, and its HBM bandwidth is halved here. A chip of v5p is one device of two cores: XLA's own products
use both, a kernel whose grid is walked in order uses one. A vmatmul sends 16 rows of bfloat16 through one matrix unit
of 128 x 128 (v4, v5e, v5p) or 256 x 256 (v6e, tpu7x); clocks and the cycles it takes give the published peaks together,
clock * cores * units * size^2 * 2 * 16 / cycles, and that of tpu7x is known from its peak only. Scoped VMEM is what one
kernel may use. The bundles that run after a jump were read off schedules.
"""

from dataclasses import dataclass

from pefx.planning.chips import DEVICES


@dataclass(frozen=True)
class Chip:
    """One kind of TPU: figures of one device, `mxus` and `scoped_vmem` of one core."""

    name: str
    topology: str  # the smallest that libtpu describes
    clock: float  # Hz
    mxus: int
    cycles_per_vmatmul: int
    mxu_size: int
    scoped_vmem: int  # bytes
    delay: int  # bundles after a jump that still run
    cores: int = 1

    @property
    def bandwidth(self) -> float:
        """Bytes of HBM per second."""
        return DEVICES[self.name].bandwidth

    @property
    def peak(self) -> float:
        """bfloat16 operations per second of all cores."""
        return 2 * 16 / self.cycles_per_vmatmul * self.clock * self.cores * self.mxus * self.mxu_size**2


MIB = 1 << 20
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "v4:2x2x1", 1.05e9, 4, 16, 128, 16 * MIB, 1),
        Chip("v5e", "v5e:2x2", 1.5e9, 4, 16, 128, 16 * MIB, 4),
        Chip("v5p", "v5p:2x2x1", 1.75e9, 4, 16, 128, 16 * MIB, 4, cores=2),
        Chip("v6e", "v6e:2x2", 1.75e9, 2, 8, 256, 32 * MIB, 4),
        Chip("tpu7x", "tpu7x:2x2x1", 1.1e9, 2, 4, 256, 32 * MIB, 6),
    )
}
