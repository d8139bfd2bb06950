"""Slices beside each other."""

import pytest

from pefx.config import MeshConfig
from pefx.errors import PefxError
from pefx.planning.run import beside
from tests.planning_small import CONFIG


def test_a_slice_beside_it_may_have_a_mesh_of_its_own() -> None:
    assert beside(CONFIG, "v5e:4x4").mesh == MeshConfig(0, 2, 2)
    assert beside(CONFIG, "v5e:4x4/2x4x2").mesh == MeshConfig(2, 4, 2)
    with pytest.raises(PefxError, match="a mesh is data x expert x model"):
        beside(CONFIG, "v5e:4x4/2x4")
