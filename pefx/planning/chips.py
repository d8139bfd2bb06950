"""Kinds of TPU and the shapes they come in, as data.

Published figures of a chip (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm). A chip of v4 and of tpu7x is
two devices, as jax counts them, and its figures are halved here.
"""

from dataclasses import dataclass

from pefx.errors import PefxError

GB = 1e9


@dataclass(frozen=True)
class Device:
    """What one device has: bytes of HBM, bytes per second to HBM and to its neighbours (all links, one direction),
    bfloat16 operations per second. `dimensions` of a slice: 2 or 3.
    """

    name: str
    memory: float
    bandwidth: float
    links: float
    peak: float
    dimensions: int


DEVICES = {
    device.name: device
    for device in (
        Device("v4", 32 * GB / 2, 1230 * GB / 2, 300 * GB / 2, 275e12 / 2, 3),
        Device("v5e", 16 * GB, 820 * GB, 200 * GB, 197e12, 2),
        Device("v5p", 95 * GB, 2460 * GB, 600 * GB, 459e12, 3),
        Device("v6e", 32 * GB, 1640 * GB, 448 * GB, 918e12, 2),
        Device("tpu7x", 192 * GB / 2, 7400 * GB / 2, 1200 * GB / 2, 2307e12 / 2, 3),
    )
}


def device_of(topology: str) -> Device:
    """The kind of device of a topology such as `v5p:4x4x4`. Raises PefxError where it is no kind or no shape of it."""
    kind, _, shape = topology.partition(":")
    if kind not in DEVICES:
        raise PefxError(f"topology {topology!r}: kind {kind!r} is not known; known are {', '.join(DEVICES)}")
    device, sides = DEVICES[kind], shape.split("x")
    if len(sides) != device.dimensions or not all(side.isdigit() and int(side) > 0 for side in sides):
        example = "x".join("4" * device.dimensions)
        raise PefxError(
            f"topology {topology!r}: a slice of {kind} has {device.dimensions} sides, as in {kind}:{example}"
        )
    return device
