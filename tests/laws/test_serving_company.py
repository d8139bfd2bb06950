"""Law 2 for whole answers: alone, in company of 64 adapters, after preemption, from cached prefixes, the bits are one.

And pages that nobody holds are never read, whatever is in them.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pefx.config import MeshConfig, ServeConfig
from pefx.mesh import on_mesh
from pefx.serving.assembly import build_engine, read_parts
from pefx.serving.engine import Engine, Way
from pefx.serving.fair_queue import FairQueue
from pefx.serving.policies import Policies
from pefx.serving.requests import Request
from pefx.steps import ServeState
from pefx.store.catalog import Catalog
from tests.serving_small import MODEL, commit, make_base

TO_THE_BIT = True
USERS, PAGE = 64, 32
COMMON: dict[str, Any] = {"logprobs": True, "ignore_eos": True}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "top_logprobs": 4},
    {"temperature": 1.3, "min_p": 0.02, "repetition_penalty": 1.3},
    {"temperature": 0.6, "top_k": 9, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": ((7, 5.0), (8, -100.0)), "prompt_logprobs": True},
    {"temperature": 1.0, "n": 2},
]
DEFAULT = Way()
POLICIES: list[str | None] = [f"user-{i}" for i in range(USERS)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    """A base and a catalog of 64 policies, and a config with a slot and a seat for each."""
    directory: Path = tmp_path_factory.mktemp("served")
    digest = make_base(directory / "base")
    for index, policy in enumerate(POLICIES):
        commit(directory / "catalog", digest, str(policy), seed=index)
    return ServeConfig(
        name="company",
        base=str(directory / "base"),
        catalog=str(directory / "catalog"),
        slots=USERS,
        sequences=USERS,
        step_tokens=32,
        page_size=PAGE,
        max_rank=8,
        mesh=MeshConfig(data=1),  # half of the time to compile; shards are the matter of test_shardings
    )


@contextmanager
def engine_of(config: ServeConfig, way: Way = DEFAULT) -> Iterator[tuple[Engine, Policies]]:
    parts = read_parts(config, Catalog.open(str(config.catalog), read_only=True))
    with on_mesh(parts.mesh), closing(build_engine(config, parts, FairQueue(), way)[0]) as engine:
        yield engine, parts.policies


def answer(engine: Engine, policies: Policies, asked: list[Request]) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for handle, request in enumerate(asked):
        revision = None if request.policy is None else policies.resolve(request.policy, None)
        engine.submit(handle, request, revision)
    while not engine.idle:
        rows |= {answered.handle: answered.row for answered in engine.step()}
        engine.wait(60.0)
    return [rows[handle] for handle in range(len(asked))]


def mixed() -> list[Request]:
    """A request of each policy and two of the base, of many kinds; every one of them begins with the same tokens."""
    rng = np.random.default_rng(5)
    preamble = tuple(rng.integers(3, MODEL.vocab_size, 40).tolist())
    found = []
    for index, policy in enumerate([*POLICIES, None, None]):
        own = tuple(rng.integers(3, MODEL.vocab_size, rng.integers(1, 20)).tolist())
        kind: dict[str, Any] = COMMON | {"max_tokens": int(rng.integers(2, 24))} | KINDS[index % len(KINDS)]
        found.append(Request(f"r{index}", preamble + own, policy, **kind))
    return found


def test_whole_answers_do_not_depend_on_company_pages_or_what_was_cached(served: ServeConfig):
    asked = mixed()
    some = [0, 1, 2, 3, 4, 5, len(asked) - 1]
    with engine_of(replace(served, prefix_cache=False)) as (engine, policies):
        alone = {index: answer(engine, policies, [asked[index]])[0] for index in some}
        together = answer(engine, policies, asked)
        assert engine.state().preemptions == 0
    for index in some:
        assert together[index] == alone[index]
    with engine_of(served) as (engine, policies):
        first = answer(engine, policies, asked)
        cached = engine.state().cached_tokens
        again = answer(engine, policies, asked)
        assert engine.state().cached_tokens - cached > 10 * PAGE
    assert first == again == together
    # In lockstep: how often they make way for each other does not depend on when weights arrive.
    with engine_of(replace(served, pages=18), Way(lockstep=True)) as (engine, policies):
        crowded = answer(engine, policies, asked)
        assert engine.state().preemptions >= 3
    assert crowded == together
    assert all("error" not in row for row in together)


def test_what_is_in_pages_that_nobody_holds_is_never_read(served: ServeConfig):
    asked = mixed()[:16]
    with engine_of(served) as (engine, policies):
        clean = answer(engine, policies, asked)
    with engine_of(replace(served, prefix_cache=False)) as (engine, policies):
        runner: Any = engine._device
        pages = engine._scheduler.shards[0].pages
        run, poisoned = runner.run, 0

        def poison(plan: Any) -> Any:
            """Every page that no sequence holds is made a page of not-a-numbers before the step."""
            nonlocal poisoned
            free = np.array(sorted(set(range(pages.total)) - set(pages._holders)), np.int32)
            kv = runner._state.kv
            runner._state = ServeState(
                replace(kv, keys=kv.keys.at[:, free].set(jnp.nan), values=kv.values.at[:, free].set(jnp.nan))
            )
            poisoned += len(free)
            return run(plan)

        runner.run = poison
        assert answer(engine, policies, asked) == clean
        assert poisoned > 100
