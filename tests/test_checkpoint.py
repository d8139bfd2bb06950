"""Checkpoints come back bit for bit, or with an error that says what is wrong."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pefx.checkpoint import Checkpoints, check_same_config, config_dict, config_hash
from pefx.config import OptimizerConfig, TrainConfig, UserConfig
from pefx.errors import PefxError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    left: jax.Array
    right: dict[str, jax.Array]


def make(seed: int = 0) -> dict[str, Pair]:
    rng = np.random.default_rng(seed)
    left = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    right = {
        "experts.up_proj": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
        "count": jnp.arange(4, dtype=jnp.int32),
    }
    return {"bank": Pair(left, right)}


def bits(tree: object) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_round_trip_keeps_bits_meta_and_the_newest(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (1, 2, 3):
            checkpoints.save(step, make(step), {"positions": {"ann": step}, "config": {"name": "x"}})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest == 3
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3"]
        assert checkpoints.meta(3) == {"positions": {"ann": 3}, "config": {"name": "x"}}
        assert bits(checkpoints.load(3, make())) == bits(make(3))
        assert bits(checkpoints.load(2, make())) == bits(make(2))


def test_a_saved_tree_may_be_donated_at_once(tmp_path: Path) -> None:
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    tree = make(5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        tree = jax.block_until_ready(change(tree))
        checkpoints.wait()
        assert bits(checkpoints.load(1, make())) == bits(make(5))


def test_structure_shape_and_dtype_are_checked_by_name(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(), {})
        checkpoints.wait()
        good = make()["bank"]
        with pytest.raises(PefxError, match=r"array 'bank\.left' is float32\(3, 5\), this run needs float32\(3, 6\)"):
            checkpoints.load(1, {"bank": replace(good, left=jnp.zeros((3, 6)))})
        with pytest.raises(PefxError, match=r"'bank\.left' is float32\(3, 5\), this run needs bfloat16"):
            checkpoints.load(1, {"bank": replace(good, left=jnp.zeros((3, 5), jnp.bfloat16))})
        with pytest.raises(PefxError, match=r"unexpected array 'bank\.right\.count'"):
            checkpoints.load(1, {"bank": replace(good, right={"experts.up_proj": good.right["experts.up_proj"]})})
        with pytest.raises(PefxError, match=r"has no array 'bank\.right\.more'"):
            checkpoints.load(1, {"bank": replace(good, right={**good.right, "more": jnp.zeros(1)})})


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        tree = {"x": jnp.asarray(np.random.default_rng(0).integers(0, 2**31, 4096, np.int32))}
        checkpoints.save(1, tree, {})
    largest = max(
        (path for path in (tmp_path / "1").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(bytes(data))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(PefxError, match="damaged checkpoint"):
        checkpoints.load(1, {"x": jnp.zeros(4096, jnp.int32)})


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(), {})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1


def test_a_changed_config_names_the_field() -> None:
    config = TrainConfig(name="run", output="out", users=(UserConfig("ann", "ann.jsonl"),))
    saved = config_dict(config)
    check_same_config(saved, config_dict(replace(config, output="elsewhere")), Path("out"))
    assert config_hash(saved) == config_hash(config_dict(replace(config, output="elsewhere")))
    with pytest.raises(PefxError, match=r"field 'optimizer\.learning_rate' was 0\.005, now it is 0\.1"):
        check_same_config(
            saved, config_dict(replace(config, optimizer=OptimizerConfig(learning_rate=0.1))), Path("out")
        )
    more = replace(config, users=(*config.users, UserConfig("bob", "bob.jsonl")))
    with pytest.raises(PefxError, match=r"field 'users\.1\.adapter' was absent"):
        check_same_config(saved, config_dict(more), Path("out"))
