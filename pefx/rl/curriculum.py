"""Lessons from rewards: answers are drawn by the policies that learn from them, in the process that trains them.

One step of a run: policies that have nothing left to learn from draw answers, all of them in shared batches; answers
are rewarded, and become lessons with an advantage, a weight and what their loss is over; then all policies of the step
are updated in one mixed batch, each by its own loss. Those that learn from text take part as they are.
"""

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pefx.config import TrainConfig
from pefx.data.pipeline import user_seed
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import owner
from pefx.families.config_json import read_config
from pefx.rl.advantages import even
from pefx.rl.counters import counters
from pefx.rl.drawing import Wish, draw, failed, fitting
from pefx.rl.lessons import Passes, behind, by_token, learnable, pieces_of, plain_lesson, without
from pefx.rl.pieces import Piece, from_json, to_json
from pefx.rl.plan import RewardPlan, make_plan
from pefx.rl.records import Rollout, rollouts_path, write_rollouts
from pefx.rl.resident_sampler import ResidentSampler
from pefx.rl.rewards import Rewards
from pefx.training.adapters import AdapterTraining
from pefx.training.curriculum import Numbers, Texts
from pefx.training.heldout import Exam, scored
from pefx.training.journal import Measure
from pefx.training.planner import Lesson
from pefx.training.sessions import Session


class Drawing:
    """Answers that one policy drew at once: `all` of them, and the `groups` that are learned from. `position` is the
    next problem's.
    """

    def __init__(self, position: int):
        self.position = position
        self.all: list[Rollout] = []
        self.groups: list[list[Rollout]] = []

    def take(self, drawn: list[Rollout], taught: list[Rollout], size: int, drop_even: bool) -> int:
        """More answers, `size` to a problem, in the order of the problems, and each as it is learned from. Returns how
        many groups are kept of them.
        """
        groups = [taught[at : at + size] for at in range(0, len(drawn), size)]
        rewards = np.asarray([one.reward for one in drawn], np.float64)
        dull = even(rewards, np.asarray([one.group for one in drawn], np.int64))[::size] & drop_even
        kept = [group for group, leave in zip(groups, dull, strict=True) if not leave]
        self.all += drawn
        self.groups += kept
        self.position += len(groups)
        return len(kept)

    @property
    def learnable(self) -> list[Rollout]:
        """Answers that can be learned from."""
        return learnable([one for group in self.groups for one in group])


class Rewarded(Texts):
    """Lessons of sessions with tasks, which `rewards` evaluates; the others' are texts."""

    terms = True

    def __init__(self, config: TrainConfig, sessions: Sequence[Session], tokenizer: Tokenizer, rewards: Rewards):
        super().__init__(config, sessions, tokenizer)
        self._sessions, self._tokenizer = sessions, tokenizer
        self._plans = [make_plan(config, session) for session in sessions]
        assert config.base is not None
        model = read_config(config.base)
        replayed = any(plan is not None and plan.loss.replay != "live" for plan in self._plans)
        sparse = model.layers - len(model.dense_layers)
        self.routes = (sparse, model.experts_per_token) if replayed else None
        self._left: list[deque[Piece]] = [deque() for _ in sessions]
        self._taken: list[deque[Piece]] = [deque() for _ in sessions]
        self._sampler = ResidentSampler(config, tokenizer, routes=replayed)
        self._rewards = rewards

    def fingerprint(self, index: int) -> str:
        plan = self._plans[index]
        if plan is None:
            return super().fingerprint(index)
        named = [asdict(plan.task.config), asdict(plan.rollout), asdict(plan.loss), self._seed(plan)]
        return "sha256:" + hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def measure(self, index: int) -> Measure:
        return super().measure(index) if self._plans[index] is None else "reward"

    def _seed(self, plan: RewardPlan) -> int:
        """The seed of a policy's draws, from its own name and seed: neighbours do not shift it."""
        user = plan.session.user
        return user_seed(self._config.data.seed, user.name) if user.seed is None else user.seed

    def prepare(self, active: Sequence[int], training: AdapterTraining) -> None:
        short = [i for i in active if self._plans[i] is not None and not self._left[i]]
        if short:
            drawings = self._draw(short, training)
            for index, drawing in drawings.items():
                session, micro = training.sessions[index], training.progress[index].micro
                self._write(self._plan(index), micro // session.accumulate, drawing.all)
            self._learn_from(drawings, training)

    def _draw(self, short: Sequence[int], training: AdapterTraining) -> dict[int, Drawing]:
        """Answers for all of these, in rounds: who leaves out prompts that teach nothing draws others instead."""
        drawings = {index: Drawing(training.progress[index].position) for index in short}
        wanted = {index: self._plan(index).groups for index in short}
        sampler, revisions = self._sampler.at(training)
        turn = 0
        while wanted:
            wishes = [self._wish(self._plan(i), revisions, drawings[i].position, n) for i, n in wanted.items()]
            for index, drawn in zip(list(wanted), draw(sampler, self._rewards, wishes), strict=True):
                plan = self._plan(index)
                drawn, taught = self._taught(plan, drawn)
                again = plan.loss.drop_even and turn < plan.loss.redraw
                wanted[index] -= drawings[index].take(drawn, taught, plan.rollout.group, drop_even=again)
            wanted = {index: count for index, count in wanted.items() if count}
            turn += 1
        return drawings

    def _taught(self, plan: RewardPlan, drawn: Sequence[Rollout]) -> tuple[list[Rollout], list[Rollout]]:
        """Answers as they were drawn and as they are learned from; with errors where they are too long for it."""
        length, kept, taught = self._config.data.sequence_length, [], []
        for one in drawn:
            context = self._context(plan, one)
            own = without(context, one) if plan.rollout.context and one.error is None else one
            taught.append(fitting(own, length, len(context) if plan.context else 0))
            kept.append(replace(one, error=taught[-1].error))
        return kept, taught

    def _context(self, plan: RewardPlan, rollout: Rollout) -> list[int]:
        """The tokens of the context of the problem that was answered."""
        if not (plan.context or plan.rollout.context):
            return []
        return self._tokenizer.encode(plan.task.problem(rollout.group, "train").context)

    def _wish(self, plan: RewardPlan, revisions: Any, start: int, count: int) -> Wish:
        revision, group = revisions[plan.session.policy], plan.rollout.group
        return Wish(revision, plan.task, "train", start, count, group, self._seed(plan), plan.rollout)

    def _write(self, plan: RewardPlan, update: int, drawn: list[Rollout]) -> None:
        """Keep what was drawn at an update of a policy."""
        if owner():
            write_rollouts(rollouts_path(self._config.output, plan.session.policy, update), drawn)

    def _learn_from(self, drawings: dict[int, Drawing], training: AdapterTraining) -> None:
        """Score the answers where their lessons need it, all of them in shared batches, and make lessons of them."""
        passes = {id(one): Passes() for drawing in drawings.values() for one in drawing.learnable}
        for kind in ("trainer", "reference", "context"):
            exams, owners = [], []
            for index, drawing in drawings.items():
                plan, session = self._plan(index), training.sessions[index]
                if getattr(plan, kind):
                    replayed = kind == "trainer" and plan.loss.replay == "sampler"
                    answers = [self._as_scored(plan, one, kind) for one in drawing.learnable]
                    lessons = tuple(plain_lesson(one, replayed) for one in answers)
                    exams.append(Exam(lessons, -1 if kind == "reference" else session.slot, session.shard))
                    owners.append(drawing.learnable)
            for exam, place, logprobs, routes in scored(training.base, training.bank, exams, training.layout):
                one = owners[exam][place]
                found = {kind: by_token(logprobs)[-len(one.tokens) :]}
                if kind == "trainer":
                    found["routes"] = np.concatenate([routes, routes[-1:]]).astype(np.uint16)
                passes[id(one)] = replace(passes[id(one)], **found)
        for index, drawing in drawings.items():
            facts = {"draws": float(len(drawing.all)), "failed": float(failed(drawing.all))}
            pieces = pieces_of(self._plan(index), drawing.groups, passes, drawing.position, facts)
            self._left[index].extend(pieces)

    def _as_scored(self, plan: RewardPlan, rollout: Rollout, kind: str) -> Rollout:
        """An answer as a pass of this kind reads it."""
        return behind(self._context(plan, rollout), rollout) if kind == "context" else rollout

    def _plan(self, index: int) -> RewardPlan:
        plan = self._plans[index]
        if plan is None:
            raise RuntimeError(f"user '{self._sessions[index].policy}' has no task")
        return plan

    def take(self, index: int, position: int, row: int) -> tuple[list[Lesson], int]:
        if self._plans[index] is None:
            return super().take(index, position, row)
        piece = self._left[index].popleft()
        self._taken[index].append(piece)
        return [replace(item, slot=row) for item in piece.lessons], piece.position

    def numbers(self, index: int, lessons: Sequence[Lesson]) -> Numbers:
        plan = self._plans[index]
        if plan is None:
            return super().numbers(index, lessons)
        return plan.numbers() | {"denominator": self._taken[index][-1].denominator}

    def report(self, index: int, lessons: Sequence[Lesson], seen: Sequence[tuple[np.ndarray, np.ndarray]]) -> Numbers:
        plan = self._plans[index]
        if plan is None:
            return super().report(index, lessons, seen)
        piece = self._taken[index].popleft()
        now = [
            replace(record, trainer=by_token(logprobs), entropies=by_token(entropies))
            for record, (logprobs, entropies) in zip(piece.seen, seen, strict=True)
        ]
        low, high = plan.clips
        found = counters(now, replace(plan.row, clip_low=low, clip_high=high))
        return {"reward": found.pop("reward_mean"), **found, **piece.facts}

    def evaluate(self, indices: Sequence[int], training: AdapterTraining) -> dict[str, float]:
        own = [self._plans[index] for index in indices]
        plans = [plan for plan in own if plan is not None and plan.rollout.heldout]
        if not plans:
            return {}
        sampler, revisions = self._sampler.at(training, stale=False)
        wishes = [
            Wish(revisions[p.session.policy], p.task, "heldout", 0, p.rollout.heldout, 1, self._seed(p), p.rollout)
            for p in plans
        ]
        drawn = draw(sampler, self._rewards, wishes)
        rewards = [np.nan_to_num([one.reward for one in rollouts]) for rollouts in drawn]
        return {plan.session.policy: float(own.mean()) for plan, own in zip(plans, rewards, strict=True)}

    def host(self, index: int) -> Any:
        return to_json(self._left[index]) if self._left[index] else None

    def restore(self, index: int, saved: Any) -> None:
        self._left[index] = deque(from_json(saved) if saved else ())
