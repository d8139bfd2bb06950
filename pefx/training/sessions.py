"""Sessions: what one user's training is, how far it is, and who takes part in which step. Host logic: no jax.

A session advances by micro-batches of its own stream; `accumulate` of them make one update. Who else takes part in a
step, and in which share, changes no number of a session: its trajectory is a function of its own config and data.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, zip_longest
from typing import Any, NamedTuple

import numpy as np

from pefx.adapters.methods.table import rate_of, uneven
from pefx.config import AdapterSpec, OptimizerConfig, TrainConfig, UserConfig
from pefx.errors import PefxError

LOSS_FIELDS = ("clip_low", "clip_high", "beta", "kl", "entropy", "denominator")


@dataclass(frozen=True)
class Session:
    """The plan of one policy's training: `steps` updates of `accumulate` micro-batches, in `slot` of shard `shard`.

    A shard's slots are its own part of the bank; a session that waits for one has slot -1.
    """

    policy: str
    user: UserConfig
    spec: AdapterSpec
    optimizer: OptimizerConfig
    seed: int
    shard: int
    slot: int
    steps: int
    accumulate: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the whole session."""
        return self.steps * self.accumulate

    def provenance(self, config: TrainConfig) -> dict[str, Any]:
        """What determines the result besides base and data, as JSON: no paths, no times."""
        rewarded = {}
        if self.user.task is not None:
            how = {"rollout": self.user.rollout or config.rollout, "sampler": config.sampler}
            how |= {"task": self.user.task, "policy_loss": self.user.policy_loss or config.policy_loss}
            rewarded = {name: json.loads(json.dumps(asdict(part))) for name, part in how.items()}
        return {
            "run": config.name,
            "optimizer": asdict(self.optimizer),
            "steps": self.steps,
            "accumulate": self.accumulate,
            "sequence_length": config.data.sequence_length,
            "tokens_per_user": config.data.tokens_per_user,
            "data_seed": config.data.seed,
            "page_size": config.page_size,
            "precision": config.precision,
            **rewarded,
        }


@dataclass(frozen=True)
class Progress:
    """How far a session is: micro-batches done and the position of the next example in its stream."""

    micro: int = 0
    position: int = 0

    def after(self, position: int) -> "Progress":
        """One micro-batch later."""
        return replace(self, micro=self.micro + 1, position=position)


def make_sessions(config: TrainConfig, shards: int = 1) -> list[Session]:
    """One session per user, in config order, dealt out to the shards; the first ones have a slot, as far as there are.

    Raises PefxError naming the field.
    """
    if not config.users:
        raise PefxError("config field 'users' is empty; name at least one user, or set 'pretrain' to train a base")
    if config.accumulate < 1:
        raise PefxError(f"config field 'accumulate' is {config.accumulate}; it must be at least 1")
    if config.data.users_per_step < 1:
        raise PefxError(f"config field 'data.users_per_step' is {config.data.users_per_step}; it must be at least 1")
    if config.slots < 0 or config.slice_steps < 1:
        name = "slots" if config.slots < 0 else "slice_steps"
        least = "0 (a slot for each user) or more" if name == "slots" else "at least 1"
        raise PefxError(f"config field '{name}' is {getattr(config, name)}; it must be {least}")
    slots = slots_of(config, shards)
    sessions: list[Session] = []
    seen: dict[str, int] = {}
    for index, user in enumerate(config.users):
        if user.name in seen:
            raise PefxError(f"config field 'users.{index}.name': '{user.name}' is also users.{seen[user.name]}")
        seen[user.name] = index
        steps = config.steps if user.steps is None else user.steps
        if steps < 1:
            raise PefxError(f"config field 'steps' of user '{user.name}' is {steps}; it must be at least 1")
        sessions.append(
            Session(
                policy=user.name,
                user=user,
                spec=user.adapter or config.adapter,
                optimizer=user.optimizer or config.optimizer,
                seed=config.seed if user.seed is None else user.seed,
                shard=index % shards,
                slot=index // shards if index // shards < slots else -1,
                steps=steps,
                accumulate=config.accumulate,
            )
        )
    return sessions


def slots_of(config: TrainConfig, shards: int) -> int:
    """Slots of each shard."""
    users = len(config.users)
    return -(-min(config.slots or users, users) // shards)


@dataclass(frozen=True)
class Slices:
    """Time slices: each shard has `slots`, and who is in them stays for `steps` steps.

    `done` steps are over, in the last of which the sessions in `resident` had the slots.
    """

    slots: int
    steps: int
    done: int = 0
    resident: tuple[int, ...] = ()


class Turn(NamedTuple):
    """Of a step, by shard: the sessions that take part, and those that have a slot, by index."""

    active: list[tuple[int, ...]]
    resident: list[tuple[int, ...]]


def take_turns(
    sessions: Sequence[Session],
    progress: Sequence[Progress],
    width: int,
    shards: int = 1,
    slices: Slices | None = None,
    limits: Sequence[int] | None = None,
) -> list[Turn]:
    """Which sessions take part in each step of a run: on each shard at most `width`, each at most once.

    Always those furthest behind (by fraction of their own work, then by order) of those that have a slot (all, without
    `slices`), so that all advance evenly. At the begin of a slice those furthest behind get the slots; who finishes
    leaves its slot to the next. `progress` is where they stand now: what is left of a run follows from it, with as many
    shards as there are now. `limits` are the micro-batches at which each stops (None: of its whole session).
    """
    own = [[index for index, session in enumerate(sessions) if session.shard == shard] for shard in range(shards)]
    slices = slices or Slices(max(map(len, own)), 1)
    ends = limits or [session.micro_batches for session in sessions]
    turns = [_shard_turns(sessions, progress, ends, indices, width, slices) for indices in own]
    idle = (), ()
    return [Turn(*map(list, zip(*step, strict=True))) for step in zip_longest(*turns, fillvalue=idle)]


def _shard_turns(
    sessions: Sequence[Session],
    progress: Sequence[Progress],
    ends: Sequence[int],
    indices: Sequence[int],
    width: int,
    slices: Slices,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The turns of one shard's sessions, each to its end: who takes part, and who has a slot."""
    behind = [
        (progress[index].micro / sessions[index].micro_batches, index, progress[index].micro)
        for index in indices
        if progress[index].micro < ends[index]
    ]
    # There may be fewer slots than when they got theirs.
    resident = sorted(one for one in behind if one[1] in slices.resident)[: slices.slots]
    kept = {index for _, index, _ in resident}
    waiting = [one for one in behind if one[1] not in kept]
    heapq.heapify(waiting)
    turns, here = [], None
    for step in count(slices.done):
        if step % slices.steps == 0 and waiting:
            waiting, resident, here = waiting + resident, [], None
            heapq.heapify(waiting)
        while waiting and len(resident) < slices.slots:
            heapq.heappush(resident, heapq.heappop(waiting))
            here = None
        if not resident:
            return turns
        if here is None:
            here = tuple(sorted(index for _, index, _ in resident))
        chosen = [heapq.heappop(resident) for _ in range(min(width, len(resident)))]
        turns.append((tuple(sorted(index for _, index, _ in chosen)), here))
        for _, index, micro in chosen:
            if micro + 1 < ends[index]:
                heapq.heappush(resident, ((micro + 1) / sessions[index].micro_batches, index, micro + 1))
            else:
                here = None
    raise AssertionError


class HyperTable:
    """The numbers of a `TrainHyper` by step. `rates[i]` are session i's learning rates by update, float32[steps]."""

    def __init__(self, sessions: Sequence[Session], rates: Sequence[np.ndarray], slots: int):
        self._sessions = sessions
        self._rates = rates
        self._slots = slots
        self._leaves = uneven(session.spec for session in sessions)
        self._states = max((s.spec.states for s in sessions if s.spec.method == "delta_mem"), default=0)

    def rate(self, index: int, micro: int) -> float:
        """The learning rate of the update that micro-batch `micro` of session `index` belongs to."""
        return float(self._rates[index][micro // self._sessions[index].accumulate])

    def fields(self, active: Sequence[int], progress: Sequence[Progress], width: int) -> dict[str, Any]:
        """Fields of a `TrainHyper` of `width` active adapters: sessions `active`, then padding (slot N, no update)."""
        fields = {"slots": np.full(width, self._slots, np.int32), "apply": np.zeros(width, np.bool_)}
        names = ("learning_rate", "weight_decay", "clip", "beta1", "beta2", "epsilon")
        fields.update({name: np.ones(width, np.float32) for name in names})
        fields["beta1"][:] = fields["beta2"][:] = 0.5
        for place, index in enumerate(active):
            session, micro = self._sessions[index], progress[index].micro
            fields["slots"][place] = session.slot
            fields["apply"][place] = (micro + 1) % session.accumulate == 0
            for name in names:
                fields[name][place] = getattr(session.optimizer, name)
            fields["learning_rate"][place] = self.rate(index, micro)
        if self._leaves:
            own = [self._sessions[index].spec for index in active]
            fields["rates"] = {
                name: np.asarray([rate_of(spec, name) for spec in own] + [1.0] * (width - len(own)), np.float32)
                for name in self._leaves
            }
        if self._states:
            fields["states"] = np.zeros(width, np.float32)
            for place, index in enumerate(active):
                spec = self._sessions[index].spec
                fields["states"][place] = spec.states / self._states if spec.method == "delta_mem" else 0.0
        return fields


def loss_fields(numbers: Sequence[Mapping[str, float]], width: int) -> dict[str, np.ndarray]:
    """Fields of a `PolicyNumbers` of `width` active adapters: those of `numbers`, then padding; the rest 0."""
    fields = {name: np.zeros(width, np.float32) for name in LOSS_FIELDS} | {"loss": np.zeros(width, np.int32)}
    for place, own in enumerate(numbers):
        for name, value in own.items():
            fields[name][place] = value
    return fields
