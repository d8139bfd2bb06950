"""Kinds of TPU: every kind is one that kernels are compiled for, and a slice is named as it should be."""

import pytest

from benchmarks.tpu.chips import CHIPS
from pefx.errors import PefxError
from pefx.planning.chips import DEVICES, device_of


def test_the_kinds_are_those_that_kernels_are_compiled_for():
    assert set(DEVICES) == set(CHIPS)
    for name, device in DEVICES.items():
        assert device.peak == pytest.approx(CHIPS[name].peak, rel=0.01), name


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v9:2x2", "kind 'v9' is not known; known are v4"),
        ("v5e:2x2x1", "a slice of v5e has 2 sides, as in v5e:4x4"),
        ("v5p:4x4", "as in v5p:4x4x4"),
        ("v6e", "as in v6e:4x4"),
        ("v6e:2xtwo", "a slice of v6e has 2 sides"),
    ],
)
def test_what_is_no_slice_is_refused(topology, words):
    with pytest.raises(PefxError, match=words):
        device_of(topology)
