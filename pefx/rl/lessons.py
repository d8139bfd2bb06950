"""From rewarded answers of one policy to what it learns from: advantages, corrections, weights. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pefx.errors import PefxError
from pefx.rl.advantages import Graded, grade, overlong
from pefx.rl.corrections import correct, correction
from pefx.rl.counters import Scored
from pefx.rl.pieces import Piece
from pefx.rl.plan import RewardPlan
from pefx.rl.records import Rollout
from pefx.rl.weighing import routed, routes_missing, weigh
from pefx.serving.routes import MISSING
from pefx.training.planner import Lesson, Terms


@dataclass(frozen=True, eq=False)
class Passes:
    """What the trainer makes of an answer before it is learned from. Of its tokens, log-probabilities float32[n] by the
    policy (None: the sampler's), by the base, and by the policy with the problem's context before the prompt (None:
    nobody reads them), and the routes taken, uint16[n, Lm, k].
    """

    trainer: np.ndarray | None = None
    reference: np.ndarray | None = None
    context: np.ndarray | None = None
    routes: np.ndarray | None = None


def plain_lesson(rollout: Rollout, replayed: bool) -> Lesson:
    """An answer to be scored: its drawn tokens are the targets; `replayed`: along the sampler's routes."""
    terms = None
    if replayed:
        zeros = np.zeros(len(rollout.tokens) - 1, np.float32)
        terms = Terms(zeros, zeros, zeros, _replay(rollout.routes))
    drawn = rollout.sampled[1:]
    targets = np.where(drawn, rollout.tokens[1:], -1).astype(np.int32)
    return Lesson(rollout.tokens[:-1], targets, drawn.astype(np.float32), -1, terms)


def behind(context: Sequence[int], rollout: Rollout) -> Rollout:
    """An answer as if `context`, tokens that nobody drew, had been said before its prompt; without routes."""
    ahead = len(context)
    return replace(
        rollout,
        tokens=np.concatenate([np.asarray(context, np.int32), rollout.tokens]),
        sampled=np.concatenate([np.zeros(ahead, np.bool_), rollout.sampled]),
        logprobs=np.concatenate([np.zeros(ahead, np.float32), rollout.logprobs]),
        routes=None,
    )


def without(context: Sequence[int], rollout: Rollout) -> Rollout:
    """An answer as if its first tokens, `context`, had never been said."""
    ahead = len(context)
    routes = None if rollout.routes is None else rollout.routes[ahead:]
    tokens, sampled, logprobs = rollout.tokens[ahead:], rollout.sampled[ahead:], rollout.logprobs[ahead:]
    return replace(rollout, tokens=tokens, sampled=sampled, logprobs=logprobs, routes=routes)


def by_token(values: np.ndarray) -> np.ndarray:
    """Numbers of targets as numbers of tokens: the first token is no target."""
    return np.concatenate([np.zeros(1, values.dtype), values])


def learnable(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those of which something was drawn that can be learned from."""
    return [one for one in rollouts if one.error is None and one.drawn and len(one.tokens) > 1]


def pieces_of(
    plan: RewardPlan,
    groups: Sequence[Sequence[Rollout]],
    passes: dict[int, Passes],
    position: int,
    facts: dict[str, float],
) -> list[Piece]:
    """The micro-batches of one drawing, groups dealt out evenly in their order. `passes` are by id of the rollout.

    Raises PefxError naming the policy where its correction does not fit its loss.
    """
    shares = np.array_split(np.arange(len(groups)), plan.micro_batches)
    every = [one for group in groups for one in group]
    graded = dict(zip(map(id, every), _graded(plan, every, passes), strict=True))
    return [
        _piece(plan, [one for index in share for one in groups[index]], graded, passes, position, facts)
        for share in shares
    ]


@dataclass(frozen=True)
class Grade:
    """Of one answer: its advantage, whether it is learned from, and the id of its partner."""

    advantage: float
    taken: bool
    partner: int | None


def _graded(plan: RewardPlan, rollouts: Sequence[Rollout], passes: dict[int, Passes]) -> list[Grade]:
    """Advantages within each group, and over the drawing where the loss wants it."""
    usable = {id(one): passes.get(id(one), Passes()) for one in learnable(rollouts)}
    value = _likelier if plan.context else _reward
    rewards = np.asarray([value(plan, one, usable[id(one)]) if id(one) in usable else np.nan for one in rollouts])
    found: Graded = grade(rewards, np.asarray([one.group for one in rollouts], np.int64), plan.row.advantage)
    partners = [None if at < 0 else id(rollouts[at]) for at in found.partners]
    return [Grade(float(a), bool(t), p) for a, t, p in zip(found.advantages, found.taken, partners, strict=True)]


def _likelier(plan: RewardPlan, rollout: Rollout, found: Passes) -> float:
    """How much likelier, in nats, the context makes the answer."""
    assert found.context is not None
    return float(np.sum((found.context - _old(plan, rollout, found))[rollout.sampled], dtype=np.float64))


def _old(plan: RewardPlan, rollout: Rollout, found: Passes) -> np.ndarray:
    """Log-probabilities of the policy that the loss compares with."""
    return rollout.logprobs if plan.row.old == "sampler" or found.trainer is None else found.trainer


def _reward(plan: RewardPlan, rollout: Rollout, found: Passes) -> float:
    if not plan.loss.overlong:
        return rollout.reward
    return rollout.reward + overlong(rollout.drawn, plan.longest, plan.loss.overlong)


def _piece(
    plan: RewardPlan,
    rollouts: Sequence[Rollout],
    graded: dict[int, Grade],
    passes: dict[int, Passes],
    position: int,
    facts: dict[str, float],
) -> Piece:
    taken = [one for one in rollouts if graded[id(one)].taken]
    seen = [_seen(plan, one, passes.get(id(one), Passes())) for one in taken]
    place = {id(one): index for index, one in enumerate(taken)}
    sides = [graded[id(one)].partner for one in taken]
    partners = [-1 if side is None else place[side] for side in sides]
    weights, denominator = weigh(
        [one.weights for one in seen], plan.row.aggregation, plan.longest, np.asarray(partners, np.int32)
    )
    lessons = []
    for one, own, partner, record in zip(taken, weights, partners, seen, strict=True):
        plain, found = plain_lesson(one, replayed=False), passes.get(id(one), Passes())
        reference = np.zeros(len(one.tokens), np.float32) if found.reference is None else found.reference
        advantages = np.full(len(plain.tokens), graded[id(one)].advantage, np.float32)
        replayed = None if plan.loss.replay == "live" else _replay(record.recorded)
        terms = Terms(advantages, record.old[1:], reference[1:], replayed, partner)
        lessons.append(replace(plain, weights=own[1:], terms=terms))
    return Piece(tuple(lessons), tuple(seen), denominator, position, facts)


def _seen(plan: RewardPlan, rollout: Rollout, found: Passes) -> Scored:
    """An answer as it is before any update, its tokens corrected."""
    trainer = rollout.logprobs if found.trainer is None else found.trainer
    old = _old(plan, rollout, found)
    loss, replay = plan.loss, plan.loss.replay
    routes = {"live": None, "trainer": found.routes, "sampler": rollout.routes}[replay]
    missing = np.zeros(len(rollout.tokens), np.bool_)
    if replay != "live":
        missing = routes_missing(routes, rollout.sampled)
    try:
        row = correction(loss.correction, plan.row.old, loss.correction_low, loss.correction_high)
        weights, _ = correct(row, trainer, rollout.logprobs, rollout.sampled)
    except PefxError as error:
        raise PefxError(f"user '{plan.session.policy}': {error}") from None
    return Scored(
        sampled=rollout.sampled,
        sampler=rollout.logprobs,
        trainer=trainer,
        old=old,
        weights=routed(weights, missing, "mask" if loss.drop_unrouted else "fallback"),
        entropies=np.zeros(len(rollout.tokens), np.float32),
        missing=missing,
        recorded=rollout.routes if replay == "live" else routes,
        live=found.routes,
        reward=rollout.reward,
        group=rollout.group,
        truncated=rollout.finish_reason == "length",
    )


def _replay(routes: np.ndarray | None) -> np.ndarray | None:
    """Recorded routes of the tokens that are read, as a step takes them: -1 where they are missing."""
    if routes is None:
        return None
    return np.where(routes[:-1] == MISSING, -1, routes[:-1].astype(np.int32)).astype(np.int32)
