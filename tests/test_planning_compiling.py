"""Slices that are no slice, and meshes of other size."""

from dataclasses import replace

import pytest

from pefx.config import MeshConfig
from pefx.errors import PefxError
from pefx.planning import abstract
from pefx.planning.compiling import too_large
from pefx.planning.run import plan_and_print
from tests.planning_small import CONFIG, SMALL, needs_libtpu


@needs_libtpu
def test_a_mesh_of_other_size_and_an_unknown_slice_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(abstract.PRESETS, "small", SMALL)
    for change, words in (
        ({"mesh": MeshConfig(2, 2, 2)}, r"2 x 2 x 2 \(data, expert, model\), 8 devices; v5e:2x2 has 4"),
        ({"mesh": MeshConfig(0, 3, 1)}, "expert x model is 3, which does not divide the 4 devices"),
        ({"mesh": MeshConfig(1, 1, 8)}, "'mesh.model' is 8, which does not divide the base's heads"),
        ({"topology": "v5e:3x5"}, "topology 'v5e:3x5' cannot be compiled for"),
        ({"base": "nothing"}, "no such folder, and no preset"),
    ):
        with pytest.raises(PefxError, match=words):
            plan_and_print(replace(CONFIG, **change), None, (), None)


def test_the_compilers_complaint_is_read_in_both_its_forms():
    said = "the total memory required for HLO temporaries (16.50G) exceeds available HBM (15.75G)."
    assert too_large(said) == {"temporary": int(16.5 * 2**30), "capacity": int(15.75 * 2**30)}
    said = "Ran out of memory in memory space hbm. Used 120.25G of 95.00G hbm."
    assert too_large(said) == {"total": int(120.25 * 2**30), "capacity": 95 * 2**30}
    assert too_large("INTERNAL: something else") == {}
