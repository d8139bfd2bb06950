"""Counters against plain loops; exactly 0 where sampler and trainer agree; their table on its page."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.losses.rows import LOSSES
from pefx.rl.counters import Scored, counters
from pefx.serving.routes import MISSING

LAYERS, CHOSEN, EXPERTS = 2, 3, 6


def scored(random: np.random.Generator, size: int, group: int = 0, spread: float = 0.3) -> Scored:
    """Any rollout of `size` tokens; what was not drawn holds not-a-number."""
    sampled = random.random(size) < 0.7
    nothing = np.where(sampled, np.float32(0), np.float32(np.nan))
    sampler = (-random.random(size)).astype(np.float32) + nothing

    def routes() -> np.ndarray:
        chosen = np.argsort(random.random((size, LAYERS, EXPERTS)), axis=-1)[..., :CHOSEN].astype(np.uint16)
        return np.where(random.random((size, 1, 1)) < 0.2, np.uint16(MISSING), chosen)

    recorded = routes()
    return Scored(
        sampled=sampled,
        sampler=sampler,
        trainer=(sampler + spread * random.standard_normal(size)).astype(np.float32),
        old=(sampler + spread * random.standard_normal(size)).astype(np.float32),
        weights=np.where(sampled & (random.random(size) < 0.8), random.random(size), 0).astype(np.float32),
        entropies=random.random(size).astype(np.float32) + nothing,
        missing=sampled & (random.random(size) < 0.3),
        recorded=recorded,
        live=np.where(random.random((size, 1, 1)) < 0.5, recorded[..., ::-1], routes()),
        reward=float(random.choice([0.0, 1.0, math.nan])),
        group=group,
        truncated=bool(random.random() < 0.3),
    )


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def by_hand(rollouts: list[Scored], loss) -> dict[str, float]:
    drawn = [(one, i) for one in rollouts for i in range(len(one.sampled)) if one.sampled[i]]
    gaps = [float(one.trainer[i]) - float(one.sampler[i]) for one, i in drawn]
    counted = [(one, i) for one, i in drawn if one.weights[i] != 0]
    clipped = []
    for one, i in counted:
        own = [j for other, j in counted if other is one]
        read = own if loss.over == "sequence" else [i]
        ratio = math.exp(mean(float(one.trainer[j]) - float(one.old[j]) for j in read))
        clips = loss.surrogate in ("clipped", "clipped_weight")
        clipped.append(float(clips and not 1 - loss.clip_low <= ratio <= 1 + loss.clip_high))
    choices = []
    for one in rollouts:
        assert one.recorded is not None
        assert one.live is not None
        for i in range(len(one.sampled)):
            for layer in range(LAYERS):
                recorded, live = one.recorded[i, layer].tolist(), one.live[i, layer].tolist()
                if MISSING not in recorded and MISSING not in live:
                    choices += [float(expert not in recorded) for expert in live]
    rewards = [one.reward for one in rollouts if math.isfinite(one.reward)]
    groups = {one.group: set() for one in rollouts}
    for one in rollouts:
        groups[one.group] |= {one.reward} if math.isfinite(one.reward) else set()
    return {
        "kl_k1": mean(-x for x in gaps),
        "kl_k3": mean(math.exp(x) - x - 1 for x in gaps),
        "gap_mean": mean(abs(x) for x in gaps),
        "gap_max": max((abs(x) for x in gaps), default=0.0),
        "clipped": mean(clipped),
        "masked": mean(float(one.weights[i] == 0) for one, i in drawn),
        "unrouted": mean(float(one.missing[i]) for one, i in drawn),
        "fallback": mean(float(one.missing[i] and one.weights[i] != 0) for one, i in drawn),
        "entropy": mean(float(one.entropies[i]) for one, i in drawn),
        "out_of_route": mean(choices),
        "length": mean(float(sum(one.sampled)) for one in rollouts),
        "reward_mean": mean(rewards),
        "reward_std": math.sqrt(mean((r - mean(rewards)) ** 2 for r in rewards)),
        "unrewarded": mean(float(not math.isfinite(one.reward)) for one in rollouts),
        "even_groups": mean(float(len(rewards) < 2) for rewards in groups.values()),
        "truncated": mean(float(one.truncated) for one in rollouts),
    }


@given(sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=5), seed=st.integers(0, 2**31))
def test_as_by_hand(sizes, seed):
    random = np.random.default_rng(seed)
    rollouts = [scored(random, size, group) for size, group in sizes]
    for name in ("ppo", "dapo", "gspo", "cispo", "dro", "dpo"):
        found, expected = counters(rollouts, LOSSES[name]), by_hand(rollouts, LOSSES[name])
        assert list(found) == list(expected)
        assert all(type(value) is float for value in found.values())
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", LOSSES)
def test_exactly_nothing_where_nothing_differs(name):
    random = np.random.default_rng(0)
    rollouts = []
    for size in (1, 7, 40):
        one = scored(random, size, size)
        same = replace(one, trainer=one.sampler, old=one.sampler, weights=one.sampled.astype(np.float32), reward=0.1)
        assert one.recorded is not None
        rollouts.append(replace(same, live=one.recorded[..., ::-1], missing=np.zeros(size, np.bool_), truncated=False))
    found = counters(rollouts, LOSSES[name])
    zero = set(found) - {"entropy", "length", "reward_mean", "even_groups"}
    assert {key: str(found[key]) for key in zero} == dict.fromkeys(zero, "0.0")
    assert found["even_groups"] == 1.0


def test_a_batch_without_routes_has_none_out_of_route():
    one = scored(np.random.default_rng(1), 9)
    bare = [replace(one, recorded=None), replace(one, live=None)]
    assert counters(bare, LOSSES["grpo"])["out_of_route"] == 0.0
    alone = counters([one], LOSSES["grpo"])["out_of_route"]
    assert alone > 0
    assert counters([one, *bare], LOSSES["grpo"])["out_of_route"] == alone


def test_all_rejected_is_all_masked_and_nothing_clipped():
    one = scored(np.random.default_rng(2), 9, spread=3.0)
    found = counters([replace(one, weights=np.zeros(9, np.float32))], LOSSES["ppo"])
    assert (found["masked"], found["clipped"], found["fallback"]) == (1.0, 0.0, 0.0)
    assert found["gap_mean"] > 0


def test_numbers_that_a_policy_sets_are_those_that_count():
    one = scored(np.random.default_rng(3), 30)
    wide = replace(LOSSES["ppo"], clip_low=1.0, clip_high=1e6)
    assert counters([one], wide)["clipped"] == 0.0 < counters([one], LOSSES["ppo"])["clipped"]


def test_the_page_names_all():
    page = (Path(__file__).parent.parent / "docs" / "rl_correction.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in page[page.index("## Counters") :] if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(counters([], LOSSES["grpo"]))
