"""8-bit weights: near the weights they stand for, the laws of a base as they are, and a quarter of its memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.config import Weights, block_of
from pefx.huggingface import base_tensors, parameters
from pefx.layers.quantised import FORMS, Quantised, blocks_of, bytes_of, multiplied_out, quantise
from pefx.model import Base, abstract_base, forward, unembed
from pefx.optim import init_opt
from pefx.steps import TrainHyper, train_step
from tests.laws.world import (
    MODEL,
    PAGE,
    Item,
    random_sequences,
    rows_of,
    serve_logprobs,
    spec_of,
    train_batch,
)

TO_THE_BIT = True

TOKENS = 256
SEQUENCES = random_sequences(5, 1, seed=3, longest=60)
# Largest error of a number: of its block's scale (int8 rounds to whole ones), or of itself (e4m3 has 3 bits).
NEAR = {"int8": 0.5 / 127, "fp8": 1 / 16}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), columns=st.integers(1, 3), power=st.integers(-30, 30))
def test_every_number_is_near_what_it_was(form: str, seed: int, rows: int, columns: int, power: int) -> None:
    a, b = 4, 6
    wide = np.random.default_rng(seed).normal(size=(2, rows * a, columns * b), scale=2.0**power).astype(np.float32)
    values, scales = quantise(wide, form, (a, b))
    assert (values.dtype, scales.shape) == (FORMS[form][0], (2, rows, columns))
    got = np.asarray(multiplied_out(jnp.asarray(values), jnp.asarray(scales), "float32"))
    largest = np.kron(scales * FORMS[form][1], np.ones((a, b), np.float32))
    bound = NEAR[form] * (largest if form == "int8" else np.maximum(np.abs(wide), largest * 2.0**-14))
    assert (np.abs(got - wide) <= bound * 1.001).all()
    # Block by block: a block of its own has the same numbers.
    alone, scale = quantise(wide[:1, :a, :b], form, (a, b))
    assert alone.tobytes() == np.ascontiguousarray(values[:1, :a, :b]).tobytes()
    assert scale[0, 0, 0] == scales[0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_zeros_stay_zeros_and_numpy_and_jax_agree(form: str) -> None:
    wide = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    wide[1] = 0
    values, scales = quantise(wide, form, (4, 8))
    ours, theirs = quantise(jnp.asarray(wide), form, (4, 8), jnp)
    assert np.asarray(theirs).tobytes() == scales.tobytes()
    assert np.asarray(ours).tobytes() == values.tobytes()
    out = np.asarray(multiplied_out(ours, theirs, "bfloat16"))
    assert not out[1].any()
    meant = values.astype(np.float32) * np.kron(scales, np.ones((4, 8), np.float32))
    assert out.tobytes() == meant.astype(ml_dtypes.bfloat16).tobytes()


def test_blocks_are_the_largest_that_divide() -> None:
    assert [block_of(n) for n in (7168, 2048, 192, 100, 1000, 1)] == [128, 128, 96, 100, 125, 1]
    assert blocks_of((61, 384, 7168, 2048)) == (128, 128)


def held(weights: Weights, precision="float32") -> Base:
    return Base(replace(MODEL, precision=precision, weights=weights), nnx.Rngs(7))


@pytest.mark.parametrize("form", FORMS)
def test_the_large_matrices_and_only_those_are_held_in_8_bits(form: Weights) -> None:
    config = replace(MODEL, precision="bfloat16", weights=form)
    found = parameters(abstract_base(config))
    kinds = {path: np.dtype(v.dtype) for path, v in found.items()}
    small = {path for path, kind in kinds.items() if kind == FORMS[form][0]}
    assert {path.rsplit(".", 2)[1] for path in small} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(path.endswith(".values") for path in small)
    plain = parameters(abstract_base(replace(config, weights="plain")))
    for path, variable in found.items():
        if path in small:
            wide = plain[path.removesuffix(".values")]
            scales = found[path.removesuffix("values") + "scales"]
            assert variable.shape == wide.shape
            assert variable.get_metadata() == wide.get_metadata() == scales.get_metadata()
            assert bytes_of(wide.shape) == variable.size + 4 * scales.size
    with pytest.raises(ValueError, match="has lost what its tensors were"):
        next(base_tensors(abstract_base(config)))


@jit
def _logits(base, bank, batch):
    hidden, _, _ = forward(base, bank, batch, KVPool.zeros(base.config, TOKENS // PAGE, PAGE))
    return unembed(base, bank, hidden, batch.by_slot())


@pytest.mark.parametrize(("form", "bound"), [("int8", 0.15), ("fp8", 0.3)])
def test_logits_are_near_the_plain_base_and_those_of_the_numbers_held(form: Weights, bound: float) -> None:
    """Of a random base, where an expert chosen otherwise is another function; `bound` is of the logits' deviation."""
    base, plain = held(form), held("plain")
    batch = train_batch([replace(s, slot=-1) for s in SEQUENCES], TOKENS, 8).tokens
    live = np.asarray(batch.positions) >= 0
    expected = np.asarray(_logits(base, None, batch))[live]
    error = expected - np.asarray(_logits(plain, None, batch))[live]
    assert 0 < np.sqrt((error**2).mean()) < bound * expected.std()
    written = jax.tree.map(
        lambda x: nnx.Param(x[...], **x.values.get_metadata()) if isinstance(x, Quantised) else x,
        base,
        is_leaf=lambda x: isinstance(x, Quantised),
    )
    written.config = plain.config
    assert np.asarray(_logits(written, None, batch))[live].tobytes() == expected.tobytes()


def test_the_laws_hold_over_8_bit_weights() -> None:
    """Law 2: decode and the training step agree to the bit. Law 4: a fresh adapter is no adapter, to the bit."""
    config, spec = replace(MODEL, layers=1, dense_layers=(), precision="bfloat16", weights="int8"), spec_of(1)
    base, slots = Base(config, nnx.Rngs(7)), 3
    bank = empty_bank(config, bank_spec([spec]), slots)
    for slot in range(slots):
        adapter = init_adapter(config, spec, slot)
        for pair in adapter.values() if slot else ():
            pair["b"] = np.random.default_rng(slot).normal(size=pair["b"].shape).astype(np.float32) * 0.1
        bank = load_adapter(bank, slot, adapter, spec)
    # The same tokens with each adapter, with a fresh one (slot 0) and with none.
    sequences = [Item(SEQUENCES[0].tokens, slot) for slot in (1, 2, 0, -1)]
    decoded = serve_logprobs(base, bank, sequences, (1,), len(sequences))
    ones, active = np.ones(slots, np.float32), np.arange(slots, dtype=np.int32)
    hyper = TrainHyper(active, ones, ones, ones, ones, ones, ones, np.zeros(slots, bool))
    batch = train_batch(sequences, TOKENS, 8)
    _, _, metrics = train_step(base, bank, init_opt(bank), batch, hyper, remat="full")
    trained = rows_of(sequences, np.asarray(metrics.logprobs))
    for one, two in zip(trained, decoded, strict=True):
        assert one.tobytes() == two.tobytes()
    assert trained[2].tobytes() == trained[3].tobytes()
    assert trained[0].tobytes() != trained[1].tobytes() != trained[3].tobytes()
