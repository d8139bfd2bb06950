from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import bank_spec, by_slot, empty_bank, load_adapter
from pefx.adapters.methods.table import init_adapter
from pefx.config import AdapterSpec, MeshConfig
from pefx.mesh import of_base, on_mesh, place
from pefx.model import Base
from pefx.optim import Hyper, init_opt
from pefx.steps import TrainHyper, init_pretrain, pretrain_step, score, train_step
from tests import model_small as small
from tests.compilations import compilations
from tests.interpreter import in_the_interpreter
from tests.laws.world import MODEL, Item, make_bank, make_base, random_sequences, train_batch

TOKENS, PLACES = 256, 8


def _items(slots: int) -> list[Item]:
    return [Item(s.tokens, i % slots) for i, s in enumerate(random_sequences(4, slots, 3, longest=60))]


def _hyper(slots: list[int], apply: bool = True) -> TrainHyper:
    ones = np.ones(len(slots), np.float32)
    columns = (0.001 * ones, 0 * ones, ones, 0.9 * ones, 0.95 * ones, 1e-8 * ones)
    return TrainHyper(np.asarray(slots, np.int32), *columns, np.full(len(slots), apply))


def test_a_step_lowers_the_loss_of_its_slots_and_scores_as_score_does():
    base, bank = make_base(), make_bank(4)
    batch = train_batch(_items(2), TOKENS, PLACES)
    before = np.asarray(score(base, bank, batch))
    idle = jax.device_get(jax.tree.map(lambda x: x[:, 2:], bank.factors))
    opt, losses = init_opt(bank), []
    for step in range(4):
        bank, opt, metrics = train_step(base, bank, opt, batch, _hyper([0, 1]))
        losses.append(np.asarray(metrics.loss))
        if step == 0:
            assert np.asarray(metrics.logprobs).tobytes() == before.tobytes()
    for slot in range(2):
        mine = (np.asarray(batch.tokens.slots) == slot) & (batch.weights > 0)
        np.testing.assert_allclose(losses[0][slot], -before[mine].mean(), rtol=1e-5)
        assert losses[-1][slot] < losses[0][slot]
    assert opt.count.tolist() == [4, 4, 0, 0]
    for a, b in zip(jax.tree.leaves(idle), jax.tree.leaves(bank.factors), strict=True):
        np.testing.assert_array_equal(a, b[:, 2:])


def test_a_padding_slot_is_dropped():
    base, bank = make_base(), make_bank(4)
    last = jax.device_get(jax.tree.map(lambda x: x[:, 3], bank.factors))
    bank, opt, _ = train_step(base, bank, init_opt(bank), train_batch(_items(1), TOKENS, PLACES), _hyper([0, 4]))
    assert opt.count.tolist() == [1, 0, 0, 0]
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(bank.factors), strict=True):
        np.testing.assert_array_equal(a, b[:, 3])


def test_a_base_learns():
    base = Base(MODEL, nnx.Rngs(0))
    opt, losses = init_pretrain(base), []
    batch = train_batch([Item(s.tokens, -1) for s in _items(1)], TOKENS, PLACES)
    hyper = Hyper(*(np.asarray(x, np.float32) for x in (3e-3, 0.1, 1.0, 0.9, 0.95, 1e-8)))
    for _ in range(4):
        base, opt, metrics = pretrain_step(base, opt, batch, hyper)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_layers_computed_again_save_memory_and_change_no_number():
    model, spec = replace(MODEL, layers=4, dense_layers=()), AdapterSpec(rank=8)
    base, batch = Base(model, nnx.Rngs(7)), train_batch(_items(4), TOKENS, PLACES)

    def step(remat):
        bank = load_adapter(empty_bank(model, spec, 4), 1, init_adapter(model, spec, 1), spec)
        args = (base, bank, init_opt(bank), batch, _hyper([0, 1, 2, 3]))
        memory = train_step.jitted().lower(*args, remat=remat).compile().memory_analysis().temp_size_in_bytes
        return memory, train_step(*args, remat=remat)

    (kept, (_, opt, metrics)), (less, (_, again_opt, again)) = step("none"), step("full")
    assert less < 0.7 * kept
    np.testing.assert_allclose(metrics.logprobs, again.logprobs, rtol=1e-5, atol=1e-6)
    for one, two in zip(jax.tree.leaves(opt), jax.tree.leaves(again_opt), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-7)


def test_the_layer_inputs_kept_are_divided_over_the_shards_of_a_width():
    model, mesh = replace(MODEL, layers=3, dense_layers=(0, 1, 2)), MeshConfig(1, 1, 2)
    spec, batch = AdapterSpec(rank=2, targets=("up_proj",)), train_batch(_items(2), TOKENS, PLACES)
    with on_mesh(mesh):
        base = place(of_base, Base(model, nnx.Rngs(7)))

        def step(remat):
            bank = load_adapter(place(by_slot, empty_bank(model, spec, 2)), 1, init_adapter(model, spec, 1), spec)
            args = (base, bank, place(by_slot, init_opt(bank)), batch, _hyper([0, 1]))
            program = train_step.jitted().lower(*args, remat=remat).compile()
            return program.as_text(), program(*args)

        _, (_, opt, metrics) = step("none")
        program, (_, again_opt, again) = step("full")
    assert f"f32[3,{TOKENS // 2},{model.hidden}]" in program
    assert f"f32[3,{TOKENS},{model.hidden}]" not in program
    np.testing.assert_array_equal(metrics.logprobs, again.logprobs)
    for one, two in zip(jax.tree.leaves(opt), jax.tree.leaves(again_opt), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_a_step_by_the_tpus_kernels_is_that_of_the_portable_ones():
    # One site: each interpreted kernel more takes seconds to compile.
    spec = AdapterSpec(rank=3, alpha=6.0, targets=("experts.down_proj",), expert_form="shared_hidden")
    config = small.variant(layers=1, dense_layers=(), head_size=128)
    base = small.make_base(config)
    batch = small.train_batch(small.random_tokens([20, 12]), [0, 1])

    def step():
        bank = empty_bank(config, bank_spec([spec]), 2)
        for slot in range(2):
            bank = load_adapter(bank, slot, small.random_adapter(config, spec, slot), spec)
        _, opt, metrics = train_step(base, bank, init_opt(bank), batch, _hyper([0, 1]))
        return opt, metrics.logprobs

    for one, two in zip(jax.tree.leaves(in_the_interpreter(step)), jax.tree.leaves(step()), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_steps_of_one_shape_are_compiled_once():
    base, bank = make_base(), make_bank(5)
    opt = init_opt(bank)

    def step(bank, opt, slots):
        batch = train_batch(_items(len(slots)), TOKENS, PLACES)
        bank, opt, _ = train_step(base, bank, opt, batch, _hyper(slots))
        return bank, opt, score(base, bank, batch)

    with compilations() as first:
        bank, opt, _ = step(bank, opt, [0, 1])
    assert first
    with compilations() as later:
        for slots in ([3, 2], [4, 5]):  # other slots, one of them past the end
            bank, opt, _ = step(bank, opt, slots)
    assert not later
