import jax
import numpy as np
import pytest

from pefx.config import MeshConfig
from pefx.mesh import by_row, on_mesh, sharded
from pefx.parcel import unwrap, wrap


def _tree(rows: int):
    rng = np.random.default_rng(0)
    return {
        "words": rng.integers(-9, 9, (rows, 3)).astype(np.int32),
        "rates": rng.normal(size=rows).astype(np.float32),
        "seeds": rng.integers(0, 2**32, rows, np.uint32),
    }


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_wrapped_comes_out_the_same_on_its_shard(shards):
    if len(jax.devices()) < shards:
        pytest.skip("one device here")
    tree = _tree(4)
    with on_mesh(MeshConfig(shards)):
        run = sharded(unwrap, (by_row,), lambda specs: jax.tree.map(lambda _: specs[0].words, tree))
        out = jax.jit(run)(wrap(tree, shards))
    for name, value in tree.items():
        assert out[name].dtype == value.dtype
        assert np.asarray(out[name]).tobytes() == value.tobytes()


def test_other_widths_are_refused():
    with pytest.raises(TypeError, match="4 bytes, not int64"):
        wrap({"a": np.zeros(2, np.int64)}, 1)
