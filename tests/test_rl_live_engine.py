"""pefx.rl.live_engine: what policies draw while they train has the bits of every other way to compute it.

Two shards of rows, each with policies, slots and pages of its own; a base with experts above and below a dense layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from pefx import steps
from pefx.adapters.bank import Bank, bank_spec, by_slot, empty_bank, load_adapter
from pefx.adapters.methods.table import Adapter, init_adapter
from pefx.batch import KVPool
from pefx.compiler import jit
from pefx.config import AdapterSpec, MeshConfig
from pefx.data.tokenizer import Tokenizer
from pefx.mesh import RULES, by_row, made, of_base, on_mesh, place, sharded
from pefx.model import Base, forward
from pefx.optim import init_opt
from pefx.packing import whole_pages
from pefx.rl.live_engine import LiveEngine
from pefx.rl.records import Rollout, read_rollouts, write_rollouts
from pefx.rl.sampler import Ask, Sampler
from pefx.serving.assembly import EngineSize, Supply, assemble
from pefx.serving.engine import Way
from pefx.serving.fair_queue import FairQueue
from pefx.serving.live import Held, LiveRevision
from pefx.steps import TrainBatch
from pefx.store.residency import Residency
from pefx.store.tiers import Tiers
from pefx.training.heldout import device_batch
from pefx.training.planner import Layout, Lesson, lay_out, lesson
from tests.compilations import compilations
from tests.rl_small import same
from tests.serving_fakes import revision
from tests.serving_small import MODEL as SMALL
from tests.serving_small import TOKENIZER

TO_THE_BIT = True

MODEL = replace(SMALL, layers=3, dense_layers=(1,))
PAGE, SLOTS = 32, 2  # of each shard
SPECS = {"ann": AdapterSpec(rank=2), "bob": AdapterSpec(rank=4), "carl": AdapterSpec(rank=3, method="rslora")}
PLACES = {"ann": (0, 1), "bob": (1, 0), "carl": (1, 1)}
SIZE = EngineSize(sequences=8, step_tokens=64, page_size=PAGE, pages=14)  # so few that some are preempted
MESHES = {"data": MeshConfig(2), "expert": MeshConfig(1, expert=2)}
LAYOUT = Layout(shares=1, share=6 * 96, length=96, page_size=PAGE, shards=2)


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(MODEL, nnx.Rngs(3))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


def make_bank() -> Bank:
    """A bank as training fills it."""
    spec, slots = bank_spec(list(SPECS.values())), 2 * SLOTS
    bank = made(by_slot, lambda: empty_bank(MODEL, spec, slots))
    for policy, (shard, slot) in PLACES.items():
        bank = load_adapter(bank, shard * SLOTS + slot, adapters()[policy], SPECS[policy])
    return bank


def adapters() -> dict[str, Adapter]:
    """Adapters that change every site."""
    found = {}
    for seed, (policy, spec) in enumerate(SPECS.items()):
        rng = np.random.default_rng(seed)
        found[policy] = {
            site: {"a": pair["a"], "b": rng.normal(size=pair["b"].shape).astype(np.float32) * 0.3}
            for site, pair in init_adapter(MODEL, spec, seed).items()
        }
    return found


def held(number: int = 0, run: str = "a") -> list[Held]:
    return [Held(LiveRevision(policy, number, run, SPECS[policy]), *place) for policy, place in PLACES.items()]


@dataclass
class World:
    """A live engine on a mesh, and the bank that it draws from."""

    base: Base
    bank: Bank
    live: LiveEngine
    sampler: Sampler


@contextmanager
def world(base: Base, tokenizer: Tokenizer, mesh: str = "data") -> Iterator[World]:
    with on_mesh(MESHES[mesh]):
        placed, bank = place(of_base, base), make_bank()
        live = LiveEngine(placed, bank, held(), mesh=MESHES[mesh], tokenizer=tokenizer, size=SIZE)
        yield World(placed, bank, live, Sampler(live.engine, tokenizer))


def asks(find: Callable[[str], Any], samples: int = 2) -> list[Ask]:
    """Of each policy and the base: a long prompt and a short one, `samples` of each."""
    story = "Once upon a time there was a little bird who wanted to sing, but nobody had taught her how. " * 2
    prompts = [story, "7 + 5 ="]
    return [
        Ask(None if not policy else find(policy), "t", group, sample, prompt, 100 * group + sample, 8 + 2 * sample)
        for policy in ("ann", "bob", "carl", "")
        for group, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def second(ask: Ask, texts: tuple[str, ...]) -> str | None:
    """Some have another turn."""
    return " And then?" if len(texts) < 2 and ask.sample else None


def test_the_bits_are_those_of_an_engine_that_loads_its_adapters(base: Base, tokenizer: Tokenizer):
    with world(base, tokenizer) as live:
        rollouts = live.sampler.sample(asks(live.live.revision), second)
    with on_mesh(MESHES["data"]):
        slots, known = [Residency(SLOTS) for _ in range(2)], adapters()
        bank = made(by_slot, lambda: empty_bank(MODEL, bank_spec(list(SPECS.values())), 2 * SLOTS))
        tiers = Tiers(lambda revision: known[revision.policy], 1 << 20, slots=slots)
        engine, _ = assemble(place(of_base, base), Supply(bank, slots, tiers), tokenizer, SIZE, FairQueue(), Way())
        catalog = Sampler(engine, tokenizer)
        loaded = catalog.sample(asks(lambda policy: revision(policy, spec=SPECS[policy])), second)
        assert engine.adapters().slot_loads >= len(SPECS)
        engine.close()
    assert all(same(one, other, but=("revision",)) for one, other in zip(rollouts, loaded, strict=True))
    assert all(rollout.error is None for rollout in rollouts)
    assert len({rollout.tokens.tobytes() for rollout in rollouts}) == len(rollouts)


@jit
def _routes(base: Base, bank: Bank, batch: TrainBatch) -> Any:
    """Routes of a forward in the form that training has."""

    def on_shard(base, bank, batch):
        pool = KVPool.zeros(MODEL, batch.tokens.tokens.shape[0] // PAGE, PAGE)
        return forward(base, bank, batch.tokens, pool)[2].ids

    return sharded(on_shard, (of_base, by_slot, by_row), lambda specs: P(None, RULES["rows"]))(base, bank, batch)


def lessons(rollouts: Sequence[Rollout]) -> list[list[list[Lesson]]]:
    """They as sequences to learn from, each on the shard of its policy; those of the base, on any."""
    shards: list[list[Lesson]] = [[], []]
    for rollout in rollouts:
        shard, slot = PLACES.get(rollout.policy, (0, -1))
        shards[shard].append(lesson(rollout.tokens, rollout.sampled, slot))
    return [[own] for own in shards]


def rows(rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, int]]:
    """Each with its first row in such a batch."""
    row = [0, LAYOUT.tokens]
    for rollout in rollouts:
        shard = PLACES.get(rollout.policy, (0, -1))[0]
        yield rollout, row[shard]
        row[shard] += whole_pages(len(rollout.tokens) - 1, PAGE) * PAGE


@pytest.mark.parametrize("mesh", ["data", pytest.param("expert", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_training(base: Base, tokenizer: Tokenizer, mesh: str):
    with world(base, tokenizer, mesh) as live:
        rollouts = live.sampler.sample(asks(live.live.revision, samples=2)[::3], second)
        batch = device_batch(lay_out(lessons(rollouts), LAYOUT))
        logprobs = np.asarray(steps.score(live.base, live.bank, batch))
        routes = np.asarray(_routes(live.base, live.bank, batch))
    assert any(rollout.turns == 2 for rollout in rollouts)
    for rollout, row in rows(rollouts):
        fed = len(rollout.tokens) - 1
        scored = logprobs[row : row + fed]
        np.testing.assert_array_equal(scored[rollout.sampled[1:]], rollout.logprobs[rollout.sampled])
        assert rollout.routes is not None
        assert rollout.routes.shape[1:] == (2, MODEL.experts_per_token)
        assert rollout.routed == fed
        np.testing.assert_array_equal(rollout.routes[:fed], routes[:, row : row + fed].swapaxes(0, 1))


def trained(live: World, rollouts: Sequence[Rollout]) -> Bank:
    """The bank after a step on `rollouts`, which takes the old one."""
    opt = made(by_slot, lambda: init_opt(live.bank))
    width = 2 * SLOTS
    shards = lessons([rollout for rollout in rollouts if rollout.policy in PLACES])
    hyper: dict[str, Any] = {
        name: np.full(width, value, np.float32)
        for name, value in {
            "learning_rate": 0.05,
            "weight_decay": 0.0,
            "clip": 1.0,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
        }.items()
    }
    active = np.tile(np.arange(SLOTS, dtype=np.int32), 2)
    numbers = steps.TrainHyper(slots=active, apply=np.ones(width, np.bool_), **hyper)
    bank, _, _ = steps.train_step(live.base, live.bank, opt, device_batch(lay_out(shards, LAYOUT)), numbers)
    return bank


def test_after_an_update_policies_draw_from_what_they_are_now(base: Base, tokenizer: Tokenizer):
    with world(base, tokenizer) as live:
        before = asks(live.live.revision)
        old = live.sampler.sample(before)
        again = live.sampler.sample(before)
        assert live.live.engine.state().cached_tokens > PAGE
        assert all(same(one, other) for one, other in zip(old, again, strict=True))
        bank = trained(live, old[::2])
        leaves = jax.tree.leaves(live.bank)
        assert all(leaf.is_deleted() for leaf in leaves)  # nobody holds a second one
        live.live.hold(bank, held(1))
        assert jax.tree.leaves(live.live._runner.bank)[0] is jax.tree.leaves(bank)[0]
        refused = live.sampler.sample(before)
        for one, rollout in zip(before, refused, strict=True):
            if one.revision is None:
                assert rollout.error is None
            else:
                now = f"revision {one.policy}@live-0 is in no slot; its policy is {one.policy}@live-1 now"
                assert rollout.error == now
        with compilations() as found:
            new = live.sampler.sample(asks(live.live.revision))
        assert not found
        fresh = LiveEngine(live.base, bank, held(1), mesh=MESHES["data"], tokenizer=tokenizer, size=SIZE)
        expected = Sampler(fresh.engine, tokenizer).sample(asks(fresh.revision))
    for one, other, wanted in zip(old, new, expected, strict=True):
        assert same(other, wanted)
        if one.policy == "base":
            assert same(one, other)
        else:
            assert (one.revision, other.revision) == (0, 1)
            assert not np.array_equal(one.logprobs[one.sampled][:1], other.logprobs[other.sampled][:1])


def test_who_is_preempted_is_computed_to_the_same_bits(base: Base, tokenizer: Tokenizer, tmp_path):
    with world(base, tokenizer) as live:
        long = [replace(one, max_tokens=30, ignore_eos=True) for one in asks(live.live.revision, 3)]
        found = live.sampler.sample(long)
        preempted = live.live.engine.state().preemptions
        assert preempted > 0
        alone = {index: live.sampler.sample([long[index]])[0] for index in (0, 2, 8, 17, 20)}
        assert live.live.engine.state().preemptions == preempted
    assert all(same(one, found[index]) for index, one in alone.items())
    assert all(rollout.routed == len(rollout.tokens) - 1 for rollout in found)
    write_rollouts(tmp_path / "000000.parquet", found)
    assert all(same(one, two) for one, two in zip(read_rollouts(tmp_path / "000000.parquet"), found, strict=True))


def test_a_policy_on_its_way_keeps_its_slot(base: Base, tokenizer: Tokenizer):
    with world(base, tokenizer) as live:
        stream = live.sampler.stream(asks(live.live.revision)[:3])
        next(stream)
        with pytest.raises(RuntimeError, match="ann@live-0 cannot leave its slot"):
            live.live.hold(live.bank, held(1))
        live.live.hold(live.bank, [one for one in held() if one.revision.policy == "ann"])
        assert len(list(stream)) == 2
        live.live.hold(live.bank, held(1))
        stray = [Held(one.revision, one.shard, SLOTS) for one in held(2)[:1]]
        with pytest.raises(ValueError, match="ann@live-2 is in slot 2; a shard has 2"):
            live.live.hold(live.bank, stray)
        assert live.live.revision("ann").number == 1
