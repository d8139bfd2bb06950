"""Sizes computed from shapes equal those of the real thing."""

import json
from dataclasses import replace

import jax
import pytest
from flax import nnx

from pefx.adapters.bank import empty_bank
from pefx.adapters.methods.counting import stored_bytes
from pefx.adapters.shared import with_shared
from pefx.batch import KVPool
from pefx.config import AdapterSpec, DataConfig, ModelConfig, PretrainConfig, ServeConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.families.config_json import config_json
from pefx.model import Base
from pefx.optim import init_opt
from pefx.sizing import render_sizes, sizes

MODEL = ModelConfig(
    vocab_size=64, hidden=16, layers=2, heads=2, kv_heads=1, head_size=8, dense_hidden=16, expert_hidden=8, context=64
)
SPEC = AdapterSpec(rank=8, targets=("q_proj", "experts.down_proj", "unembed"))


def real(tree) -> tuple[int, int]:
    leaves = jax.tree.leaves(tree)
    return sum(x.size for x in leaves), sum(x.nbytes for x in leaves)


def pairs(config) -> list[tuple[int, int]]:
    return [(row.numbers, row.bytes) for row in sizes(config)]


@pytest.fixture(params=["float32", "bfloat16"])
def model(request, tmp_path):
    """A tiny model whose `config.json` lies in the folder of the test."""
    (tmp_path / "config.json").write_text(json.dumps(config_json(MODEL, "bfloat16")))
    return replace(MODEL, precision=request.param)


def test_training_of_adapters(model, tmp_path):
    users = (UserConfig("ann", "a"), UserConfig("bob", "b", adapter=replace(SPEC, rank=2)))
    data = DataConfig(sequence_length=32, tokens_per_user=64)
    config = TrainConfig(
        "n", "o", base=str(tmp_path), users=users, adapter=SPEC, data=data, page_size=32, precision=model.precision
    )
    bank = empty_bank(model, SPEC, 2)
    opt = init_opt(bank)
    expected = [Base(model, nnx.Rngs(0)), bank, (opt.mu, opt.nu), opt.gradient, KVPool.zeros(model, 4, 32)]
    assert pairs(config) == [real(tree) for tree in expected]


def test_serving_with_and_without_a_catalog(model, tmp_path):
    config = ServeConfig(
        "n",
        str(tmp_path),
        catalog="c",
        slots=3,
        sequences=5,
        max_rank=8,
        targets=SPEC.targets,
        precision=model.precision,
    )
    base, bank, pool = Base(model, nnx.Rngs(0)), empty_bank(model, SPEC, 3), KVPool.zeros(model, 10, 32)
    assert pairs(config) == [real(base), real(bank), real(pool)]
    alone = replace(config, catalog=None, pages=7, page_size=16)
    assert pairs(alone) == [real(base), real(KVPool.zeros(model, 7, 16))]


def test_pretraining_of_a_base_too_large_for_any_machine():
    giant = replace(MODEL, hidden=8192, layers=60, experts=512, expert_hidden=4096)
    config = TrainConfig("n", "o", pretrain=PretrainConfig(giant, "t", "a", "h", "e"))
    base, moments = sizes(config)
    assert base.numbers > 59 * 512 * 3 * 8192 * 4096
    assert base.bytes == 4 * base.numbers
    assert 2 * base.numbers <= moments.numbers < 2 * base.numbers + 10


def test_the_table_adds_up(tmp_path, model):
    config = ServeConfig("n", str(tmp_path), precision=model.precision)
    last = render_sizes(config).splitlines()[-2]
    assert f"{sum(row.numbers for row in sizes(config)):,}" in last


def test_a_base_that_is_not_there_is_told(tmp_path):
    with pytest.raises(PefxError, match="absent"):
        sizes(ServeConfig("n", str(tmp_path / "absent")))


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_a_base_in_8_bits_takes_a_quarter_of_float32(weights, tmp_path):
    wide = replace(MODEL, vocab_size=8, hidden=256, dense_hidden=256, expert_hidden=256, precision="float32")
    (tmp_path / "config.json").write_text(json.dumps(config_json(wide, "bfloat16")))
    plain, narrow = (sizes(ServeConfig("n", str(tmp_path), base_weights=held))[0].bytes for held in ("plain", weights))
    assert 0.25 < narrow / plain < 0.26


def test_what_adapters_share_is_counted(model, tmp_path):
    others = (
        AdapterSpec("vera", 8, targets=("q_proj",)),
        AdapterSpec("lora_xs", 4, targets=("q_proj",)),
        AdapterSpec("tiny_lora", 2, units=3, targets=("q_proj", "experts.down_proj")),
    )
    config = ServeConfig("n", str(tmp_path), catalog="c", max_rank=8, targets=SPEC.targets, others=others)
    found = {row.what: row for row in sizes(config)}["shared by adapters"]
    base = with_shared(Base(model, nnx.Rngs(0)), others)
    assert (found.numbers, found.bytes) == real(base.shared)
    users = (UserConfig("ann", "a"), UserConfig("bob", "b", adapter=replace(SPEC, init="pissa")))
    data = DataConfig(sequence_length=32, tokens_per_user=64)
    trained = TrainConfig("n", "o", base=str(tmp_path), users=users, adapter=SPEC, data=data, page_size=32)
    start = {row.what: row for row in sizes(trained)}["shared by adapters"]
    # A0 and B0 of every target.
    assert start.numbers == stored_bytes(MODEL, SPEC, width=1)
    assert "shared by adapters" not in {row.what for row in sizes(replace(trained, users=users[:1]))}
