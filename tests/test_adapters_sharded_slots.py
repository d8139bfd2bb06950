"""One slot of a tree that lies on a mesh goes out and in to the bit; nothing else of the tree moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.adapters.sharded_slots import by_slot, read_slot, write_slot
from pefx.config import MeshConfig
from pefx.mesh import of_base, on_mesh, place, share

TO_THE_BIT = True

SLOTS = 8
MESHES = [MeshConfig(1, 1, 1), MeshConfig(8, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)]


def tree(width: int = 16) -> dict[str, dict[str, np.ndarray]]:
    """Factors of a slot, of experts, and numbers; of both widths, with negative zeros."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, SLOTS, 3, width)).astype(np.float32)
    split = rng.normal(size=(2, SLOTS, 4, 3, width)).astype(jnp.bfloat16)
    own[:, :, 1], split[:, :, :, 1] = -0.0, -0.0
    numbers = {"scales": np.arange(SLOTS, dtype=np.float32), "kinds": np.arange(SLOTS, dtype=np.int32) - 1}
    return {"q_proj": {"a": own, "b": own + 1}, "experts.up_proj": {"b": split}, "numbers": numbers}


def part_of(x: np.ndarray, slot: int) -> np.ndarray:
    return x[slot : slot + 1] if x.ndim == 1 else x[:, slot : slot + 1]


def same(left, right) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_slot_is_read_and_written_wherever_it_lies(mesh):
    held = tree()
    with on_mesh(mesh):
        for slot in (0, 3, SLOTS - 1):
            at = share(of_base, np.int32(slot))
            there = place(by_slot, held)
            found = read_slot(there, at)
            assert same(found, jax.tree.map(lambda x, slot=slot: part_of(x, slot), held))
            other = (slot + 3) % SLOTS
            moved = write_slot(there, share(of_base, np.int32(other)), jax.device_get(found))
            want = jax.tree.map(np.array, held)
            for x in jax.tree.leaves(want):
                x[(other,) if x.ndim == 1 else (slice(None), other)] = x[
                    (slot,) if x.ndim == 1 else (slice(None), slot)
                ]
            assert same(moved, want)


def test_reading_needs_no_more_room_than_a_slot():
    held = tree(4096)
    with on_mesh(MeshConfig(8, 1, 1)):
        compiled = read_slot.jitted().lower(place(by_slot, held), np.int32(3)).compile()
    slot = sum(x.nbytes for x in jax.tree.leaves(held)) // SLOTS
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * slot
    assert "all-gather" not in compiled.as_text()
