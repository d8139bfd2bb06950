"""pefx.serving.runner: plans become few shapes, and the numbers are those of a teacher-forced forward."""

import jax
import numpy as np
import pytest
from flax import nnx

from pefx.adapters.bank import empty_bank
from pefx.batch import TokenBatch
from pefx.config import AdapterSpec, MeshConfig
from pefx.errors import PefxError
from pefx.mesh import on_mesh
from pefx.model import Base
from pefx.packing import Sizes, Span, pack, tile_of
from pefx.serving.generation import Generation
from pefx.serving.pages import PageAllocator
from pefx.serving.runner import Room, Runner, buckets, fit
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.serving.sequence import Sampling, Sequence
from pefx.steps import TrainBatch, score
from pefx.store.residency import Residency
from tests.compilations import compilations
from tests.serving_fakes import revision
from tests.serving_small import MODEL, random_adapter

TO_THE_BIT = True

PAGE, SPEC = 32, AdapterSpec(rank=4)


def test_buckets_are_few_and_hold_everything():
    assert buckets(256, 32, 4) == [64, 256]
    assert buckets(32, 8, 2) == [8, 16, 32]
    assert buckets(3, 8, 4) == [8]
    assert [fit(n, buckets(256, 32, 4)) for n in (1, 64, 65, 256)] == [64, 64, 256, 256]


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(MODEL, nnx.Rngs(3))


# Shapes are those of `serving_small.make_config`, so that both tests compile the same few programs.
SLOTS, SEQUENCES, PAGES = 2, 4, 12  # of each shard
SHARDS = 2


def make(base: Base, tiles: int = 1) -> Runner:
    bank = empty_bank(MODEL, SPEC, slots=SHARDS * SLOTS)
    return Runner(base, bank, Room(SHARDS, PAGES, PAGE, SEQUENCES, tiles, tile_of(PAGE)))


def asked(handle: int, prompt: int, new: int, policy: str | None, temperature: float = 0.0) -> Sequence:
    tokens = np.random.default_rng(handle).integers(3, MODEL.vocab_size, prompt).tolist()
    sampling = Sampling(temperature, 1.0, 0.0, 0, handle)
    generation = Generation(lambda ids: "", new, (), frozenset())
    served = None if policy is None else revision(policy)
    return Sequence(handle, tokens, served, sampling, generation, new, score_prompt=True)


def serve(runner: Runner, tile: int, sequences: list[Sequence]) -> dict[str, int]:
    """Run to the end, prompts in chunks of `tile`; returns the slot of the whole bank that each policy last had."""
    scheduler = Scheduler(
        shards=[Shard(PageAllocator(PAGES), Residency(SLOTS)) for _ in range(SHARDS)],
        size=StepSize(SEQUENCES, 1, tile, PAGE),
    )
    slots = {}
    for sequence in sequences:
        scheduler.submit(sequence)
    while not scheduler.idle:
        for load in scheduler.admit():
            slots[load.revision.policy] = load.shard * SLOTS + load.slot
            adapter = random_adapter(SPEC, seed=ord(load.revision.policy[0]))
            runner.load(load.shard, load.slot, adapter, SPEC)
        plan = scheduler.plan()
        assert plan is not None
        scheduler.commit(plan, *runner.run(plan))
    return slots


def teacher_forced(base: Base, runner: Runner, sequence: Sequence, slot: int) -> np.ndarray:
    tokens = [*sequence.prompt, *sequence.generation.tokens]
    size = -(-len(tokens) // 64) * 64
    tile = tile_of(PAGE)
    sizes = Sizes(0, size // tile, 1, MODEL.context // PAGE, PAGE, tile)
    fields = pack([Span(tokens, 0, slot, list(range(size // PAGE)))], sizes)
    targets = np.full(size, -1, np.int32)
    targets[: len(tokens) - 1] = tokens[1:]
    batch = TrainBatch(TokenBatch(**fields), targets, (targets >= 0).astype(np.float32))  # pyright: ignore[reportArgumentType]
    bank = jax.device_get(runner.bank)  # off the mesh: slots count through all shards
    return np.asarray(score(base, bank, batch))[: len(tokens) - 1]


def test_numbers_do_not_depend_on_chunks_or_company_and_equal_the_scored_ones(base: Base):
    kinds = [(5, 6, None), (40, 3, "alice"), (17, 9, "bob"), (1, 4, "alice"), (60, 2, None)]
    wanted = None
    for tile, temperature in ((5, 0.7), (32, 0.7)):
        sequences = [asked(i, prompt, new, policy, temperature) for i, (prompt, new, policy) in enumerate(kinds)]
        with on_mesh(MeshConfig(SHARDS)):
            runner = make(base)
            slots = serve(runner, tile, sequences)
        got = [(s.prompt_logprobs, s.generation.tokens, s.generation.logprobs) for s in sequences]
        assert wanted is None or got == wanted
        wanted = got
        for sequence in sequences:
            slot = -1 if sequence.revision is None else slots[sequence.revision.policy]
            served = np.array([*sequence.prompt_logprobs[1:], *sequence.generation.logprobs], np.float32)
            np.testing.assert_array_equal(served, teacher_forced(base, runner, sequence, slot))


def test_after_each_shape_has_run_once_nothing_is_compiled(base: Base):
    with on_mesh(MeshConfig(SHARDS)):
        runner = make(base)
        serve(runner, 32, [asked(0, 40, 3, "alice"), asked(1, 1, 2, None)])
        with compilations() as found:
            serve(runner, 32, [asked(i, 3 + 11 * i, 2 + i, ["alice", "bob", None][i % 3], 0.5) for i in range(5)])
    assert not found


def test_what_is_warmed_up_is_not_compiled_later(base: Base):
    with on_mesh(MeshConfig(SHARDS)):
        runner = make(base)
        runner.warm()
        plain = [asked(i, 3 + 11 * i, 2 + i, None, 0.5) for i in range(5)]
        for sequence in plain:
            sequence.score_prompt, sequence.top = sequence.handle > 2, 3 * (sequence.handle % 2)
        with compilations() as found:
            serve(runner, 32, plain)
    assert not found


def test_adapter_that_does_not_fit_leaves_the_bank_as_it_was(base: Base):
    first, again = asked(1, 9, 3, "alice"), asked(1, 9, 3, "alice")
    with on_mesh(MeshConfig(SHARDS)):
        runner = make(base)
        serve(runner, 32, [first])
        wrong = AdapterSpec(rank=16)
        with pytest.raises(PefxError, match="rank"):
            runner.load(0, 0, random_adapter(wrong, 1), wrong)
        serve(runner, 32, [again])
    assert again.generation.logprobs == first.generation.logprobs


def test_no_bank_no_adapter(base: Base):
    runner = Runner(base, None, Room(1, 4, PAGE, 1, 1, tile_of(PAGE)))
    with pytest.raises(RuntimeError, match="no bank"):
        runner.load(0, 0, {}, SPEC)
