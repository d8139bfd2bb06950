"""Training of many adapters at once over one frozen base: sessions, their lessons, their slots, their commits."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pefx import steps
from pefx.adapters.bank import Bank
from pefx.adapters.shared import with_shared
from pefx.config import MeshConfig, TrainConfig
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import owner
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.loading import load_base
from pefx.losses.policy import PolicyNumbers
from pefx.mesh import by_row, check_divides, fetch, placement, share, whole
from pefx.packing import beside
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft
from pefx.store.names import check_name
from pefx.store.parked import Parked
from pefx.store.sessions import Wanted
from pefx.training.curriculum import Curriculum, Texts
from pefx.training.first_gradient import first_gradient
from pefx.training.halving import Halving
from pefx.training.heldout import Exam, device_batch, nats_per_token
from pefx.training.journal import Measure
from pefx.training.loop import Outcome, StepReport
from pefx.training.parking import Parking
from pefx.training.planner import Layout, Lesson, lay_out
from pefx.training.resident import Resident, sessions_of
from pefx.training.schedule import learning_rates
from pefx.training.sessions import (
    LOSS_FIELDS,
    HyperTable,
    Progress,
    Session,
    Slices,
    loss_fields,
    make_sessions,
    slots_of,
    take_turns,
)
from pefx.training.tenure import Tenure

ALONE = MeshConfig(data=1)
MakeCurriculum = Callable[[TrainConfig, Sequence[Session], Tokenizer], Curriculum]


class AdapterTraining:
    """A `Trainee` of one session per user. Device state: the bank and its optimizer; host state: positions.

    Built within the mesh it runs on: sessions are dealt out to its shards of rows, which have slots of their own. Where
    they are fewer, sessions take turns: those that have no slot are parked. `curriculum` makes what they learn from.
    """

    def __init__(self, config: TrainConfig, mesh: MeshConfig = ALONE, curriculum: MakeCurriculum = Texts):
        self.config, self.mesh, shards = config, mesh, mesh.rows
        self.sessions = make_sessions(config, shards)
        for session in self.sessions:
            check_name(session.policy)
        directory = _base_directory(config)
        shape = read_config(directory)
        check_divides(replace(shape, weights=config.base_weights), mesh)
        self.layout = step_layout(config, len(self.sessions), shards)
        length = config.data.sequence_length
        if length > shape.context:
            raise PefxError(f"data.sequence_length is {length}, longer than the base's context of {shape.context}")
        self.curriculum = curriculum(config, self.sessions, Tokenizer.load(directory))
        memory = any(session.spec.method == "delta_mem" for session in self.sessions)
        self.layout = replace(self.layout, terms=self.curriculum.terms, routes=self.curriculum.routes, memory=memory)
        self._taken: dict[int, list[Taken]] = {}
        rates = [learning_rates(session.optimizer, session.steps) for session in self.sessions]
        self.slots = slots_of(config, shards)  # of each shard
        self.halving = Halving(config.halving, self.sessions)
        self.hypers = HyperTable(self.sessions, rates, self.slots)
        self._go_on_from(0, [Progress() for _ in self.sessions])
        base, self.digest = load_base(directory, config.precision, placement(), config.base_weights)
        self.base, self.model = with_shared(base, [session.spec for session in self.sessions], self.digest), base.config
        several = config.accumulate > 1
        self.resident = Resident(self.base, self.sessions, self.slots, shards, several, self._first_gradients)
        # Opened before anything is trained for it: a catalog that cannot be written is an error now, not in an hour.
        self.catalog = None
        if config.catalog is not None and owner():
            self.catalog = Catalog.open(config.catalog, create=True)
        self.tenure = Tenure(self.catalog, config.output)
        self.parking = Parking(config.catalog, config.output, config.checkpoint.keep)
        self._waiting: dict[int, str] = {}  # keys of those who are parked and are not as they began

    @property
    def bank(self) -> Bank:
        """All adapters that have a slot."""
        return self.resident.bank

    def _first_gradients(self, index: int, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """Of a session's first lessons, whatever it has learned since."""
        lessons, _ = self.curriculum.take(index, 0, 0)
        return first_gradient(self.base, lessons, self.layout, targets, self.config.remat)

    def _go_on_from(self, step: int, progress: list[Progress], resident: tuple[int, ...] = ()) -> None:
        """`step` steps are done, in the last one these were resident, the sessions stand at `progress`: what is left
        follows.
        """
        self.done, self.progress = step, progress
        slices = Slices(self.slots, self.config.slice_steps, step, resident)
        # Where some were stopped, a step has no room left for them: its shape changes, the bits of no session do.
        busiest = max(Counter(self.sessions[index].shard for index in self.halving.going).values())
        self.layout = replace(self.layout, shares=min(self.layout.shares, busiest))
        turns = take_turns(self.sessions, progress, self.layout.shares, self.layout.shards, slices, self.halving.limits)
        self.turns = dict(enumerate(turns, step))
        self.steps = step + len(turns)
        self._last = resident

    def hold(self, indices: Sequence[int]) -> None:
        """These sessions get slots, and who leaves for them is parked."""
        for index, slot, other in self.resident.swaps(indices):
            if other is not None:
                self._park(other)
            key = self._waiting.pop(index, None)
            parked = None if key is None else self.parking.take(key)
            self.resident.enter(index, slot, None if parked is None else parked.arrays)
            if parked is not None:
                self.curriculum.restore(index, parked.luggage)

    def _park(self, index: int) -> None:
        """A session leaves its slot; what it has yet to learn from goes along."""
        policy, micro = self.sessions[index].policy, self.progress[index].micro
        number, luggage = self.tenure.numbers.get(policy, 0), self.curriculum.host(index)
        arrays = self.resident.leave(index)
        if micro or luggage is not None:
            self._waiting[index] = self.parking.put(policy, number, micro, Parked(arrays, luggage))
            self.curriculum.restore(index, None)

    def advance(self, step: int) -> Any:
        self.tenure.begin(Wanted(session.policy, self.digest, session.spec) for session in self.sessions)
        active, resident = self.turns[step]
        self._last = tuple(index for indices in resident for index in indices)
        self.hold(self._last)
        self.curriculum.prepare([index for indices in active for index in indices], self)
        before = list(self.progress)
        taken = [[self._take(index, row) for row, index in enumerate(indices)] for indices in active]
        hypers = [self._hyper(indices, own, before) for indices, own in zip(active, taken, strict=True)]
        lessons = [[one.lessons for one in own] for own in taken]
        batch, hyper = share(by_row, device_batch(lay_out(lessons, self.layout))), share(by_row, train_hyper(hypers))
        slots = self.resident
        slots.bank, slots.opt, metrics = steps.train_step(
            self.base, slots.bank, slots.opt, batch, hyper, remat=self.config.remat
        )
        self.done = step + 1
        self._taken[step] = [one for own in taken for one in own]
        # Where nothing reads them, the numbers of every token stay behind.
        of_tokens = (metrics.logprobs, metrics.entropies) if self.layout.terms else ()
        return *whole((metrics.loss, metrics.tokens, metrics.gradient_norm)), whole(of_tokens)

    def _take(self, index: int, row: int) -> "Taken":
        """The next lessons of a session, active row `row` of its shard's step; its position moves on."""
        before = self.progress[index]
        lessons, position = self.curriculum.take(index, before.position, row)
        self.progress[index] = before.after(position)
        place = self.sessions[index].shard * self.layout.shares + row
        return Taken(index, place, self.hypers.rate(index, before.micro), lessons)

    def _hyper(self, indices: Sequence[int], taken: Sequence["Taken"], before: Sequence[Progress]) -> dict[str, Any]:
        """Fields of one shard's `TrainHyper`, of sessions that stood at `before`."""
        width = self.layout.shares
        fields: dict[str, Any] = self.hypers.fields(indices, before, width)
        if self.layout.terms:
            numbers = [self.curriculum.numbers(one.index, one.lessons) for one in taken]
            fields |= loss_fields(numbers, width)
        return fields

    def report(self, step: int, pending: Any) -> StepReport:
        *sums, of_tokens = fetch(pending)
        losses, tokens, norms = (np.asarray(values, np.float64) for values in sums)
        by_name: dict[str, dict[str, float]] = {}
        taken = self._taken.pop(step)
        for one in taken:
            by_name[self.sessions[one.index].policy] = {
                "loss": float(losses[one.place]),
                "tokens": float(one.tokens),
                "gradient_norm": float(norms[one.place]),
                "learning_rate": one.rate,
                **self.curriculum.report(one.index, one.lessons, self._seen(one, of_tokens)),
            }
        rows = [one.place for one in taken]
        total = float(tokens[rows].sum())
        mean = float((losses * tokens)[rows].sum()) / max(total, 1e-30)
        return StepReport(mean, float(sum(one.tokens for one in taken)), by_name)

    def _seen(self, one: "Taken", of_tokens: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Log-probabilities and entropies of each lesson's targets; none where they stayed behind."""
        if not of_tokens:
            return []
        shard, row = divmod(one.place, self.layout.shares)
        at, found = shard * self.layout.tokens + row * self.layout.share, []
        for item in one.lessons:
            own = at + item.pages_before(self.layout.page_size) * self.layout.page_size
            here = slice(own, own + len(item.tokens))
            found.append((of_tokens[0][here], of_tokens[1][here]))
            at += item.pages(self.layout.page_size) * self.layout.page_size
        return found

    def evaluate(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for indices in self._rounds():
            self.hold(indices)
            found |= self._measured(indices)
        return {session.policy: found[session.policy] for session in self.sessions if session.policy in found}

    def _rounds(self) -> list[list[int]]:
        """All sessions that go on, as many at a time as have slots; who is there already comes first."""
        here = set(self.resident.here)
        own: list[list[int]] = [[] for _ in range(self.layout.shards)]
        for index in sorted(self.halving.going, key=lambda index: (index not in here, index)):
            own[self.sessions[index].shard].append(index)
        starts = range(0, max(map(len, own)), self.slots)
        return [[index for indices in own for index in indices[at : at + self.slots]] for at in starts]

    def _measured(self, indices: Sequence[int]) -> dict[str, float]:
        """Held-out measures of these, who have slots."""
        texts = {self.sessions[index]: self.curriculum.heldout(index) for index in indices}
        exams = {session: Exam(own, session.slot, session.shard) for session, own in texts.items() if own}
        layout = replace(self.layout, terms=False, routes=None)
        scores = nats_per_token(self.base, self.bank, list(exams.values()), layout) if exams else []
        found = {session.policy: score for session, score in zip(exams, scores, strict=True)}
        return found | self.curriculum.evaluate(indices, self)

    def measure(self, name: str) -> Measure:
        return self.curriculum.measure([session.policy for session in self.sessions].index(name))

    def decide(self, scores: Mapping[str, float]) -> Mapping[str, int]:
        if self.done < self.steps or self.halving.rung is None:
            return {}
        stopped = self.halving.decide(scores, self.curriculum.measure(0))
        self._go_on_from(self.done, self.progress, self._last)
        return stopped

    def state(self) -> Any:
        return self.resident.state()

    def host(self) -> dict[str, Any]:
        self.parking.named(self.done, self._waiting.values())
        users = {
            session.policy: {
                "micro": done.micro,
                "position": done.position,
                "data": self.curriculum.fingerprint(index),
                "left": self.curriculum.host(index),
                "parked": self._waiting.get(index),
            }
            for index, (session, done) in enumerate(zip(self.sessions, self.progress, strict=True))
        }
        named = {"resident": self.resident.here, "slice": self._last}
        places = {name: [self.sessions[index].policy for index in indices] for name, indices in named.items()}
        decided = {"sessions": self.tenure.numbers, "halving": self.halving.host()}
        return {"base": self.digest, "step": self.done, "users": users, **decided, **places}

    def restore(self, host: Mapping[str, Any], load: Callable[[Any], Any]) -> None:
        if host["base"] != self.digest:
            raise PefxError(
                f"{self.config.base}: is base {self.digest}; the run in {self.config.output} began with {host['base']}"
            )
        progress: list[Progress] = []
        for index, session in enumerate(self.sessions):
            saved = host["users"][session.policy]
            if saved["data"] != self.curriculum.fingerprint(index):
                raise PefxError(
                    f"{session.user.train or 'task'}: the data of user '{session.policy}' changed since the run in "
                    f"{self.config.output} began; restore it, or choose another output directory"
                )
            progress.append(Progress(saved["micro"], saved["position"]))
        self.tenure.go_on(host["sessions"])
        self.halving.go_on(host["halving"])
        index_of = {session.policy: index for index, session in enumerate(self.sessions)}
        self._go_on_from(host["step"], progress, tuple(index_of[policy] for policy in host["slice"]))
        self._waiting = {
            index_of[policy]: saved["parked"] for policy, saved in host["users"].items() if saved["parked"]
        }
        here = [index_of[policy] for policy in host["resident"]]
        self._settle(here, load(self.resident.state(len(here))), host)
        self.parking.named(self.done, self._waiting.values())
        self.parking.checkpointed(self.done, self._waiting.values())

    def _settle(self, here: Sequence[int], state: Any, host: Mapping[str, Any]) -> None:
        """Sessions that had slots when the run was saved get slots, as far as there are; the others are parked."""
        self.resident.vacate()
        for index, arrays in zip(here, sessions_of(state, len(here)), strict=True):
            left = host["users"][self.sessions[index].policy]["left"]
            self.curriculum.restore(index, left)
            for _, slot, other in self.resident.swaps([index]):
                if other is not None:
                    self._park(other)
                self.resident.enter(index, slot, arrays)

    def saved(self, step: int) -> None:
        self.tenure.checkpointed(step)
        self.parking.checkpointed(step, self._waiting.values())

    def commit(self, outcome: Outcome) -> dict[str, dict[str, Any]]:
        """Commit every adapter as a revision of its policy. Doing it twice changes nothing.

        Returns number and content hash by policy; nothing without a catalog, or where another process commits.
        """
        if self.config.catalog is None:
            return {}
        drafts = self._drafts(outcome)
        if self.catalog is None:
            for _ in drafts:
                pass
            return {}
        revisions = list(self.catalog.commit_many(drafts))
        self.tenure.end(self.steps)
        return {r.policy: {"revision": r.number, "content_hash": r.content_hash} for r in revisions}

    def finished(self) -> None:
        """The run is recorded as finished, and never goes on: nothing has to wait for it. Without a catalog what waits
        is all that there is of those who have no slot, and stays.
        """
        if self.catalog is not None and self.slots * self.layout.shards < len(self.sessions):
            self.parking.end((policy, number) for policy, number in self.tenure.numbers.items())

    def _drafts(self, outcome: Outcome) -> Iterator[Draft]:
        """The adapters as they are now; reading one is the work of all processes."""
        for index in range(len(self.sessions)):
            self.hold([index])
            session = self.sessions[index]
            yield Draft(
                policy=session.policy,
                adapter=self.resident.adapter(index),
                spec=session.spec,
                base=self.digest,
                step=self.halving.updates(index),
                seeds={"run": session.seed, "data": self.config.data.seed},
                config=session.provenance(self.config),
                data_fingerprint=self.curriculum.fingerprint(index),
                metrics=metrics_of(session, outcome.evaluations, self.measure(session.policy)),
                session=self.tenure.numbers.get(session.policy, 0),
            )


@dataclass(frozen=True)
class Taken:
    """The lessons of session `index` in a step, active row `place` of all shards', and the rate of their update."""

    index: int
    place: int
    rate: float
    lessons: list[Lesson]

    @property
    def tokens(self) -> int:
        """Targets that are learned from."""
        return sum(int(np.count_nonzero(item.weights)) for item in self.lessons)


def train_hyper(shards: Sequence[dict[str, Any]]) -> steps.TrainHyper:
    """A step's numbers, of those of all shards."""
    fields = beside(shards)
    policy = {name: fields.pop(name) for name in ("loss", *LOSS_FIELDS) if name in fields}
    if "rates" in fields:
        fields["rates"] = beside([shard["rates"] for shard in shards])
    return steps.TrainHyper(**fields, policy=PolicyNumbers(**policy) if policy else None)


def step_layout(config: TrainConfig, users: int, shards: int) -> Layout:
    """The one shape of a run's training steps."""
    data = config.data
    shares = -(-min(users, config.slots or users, data.users_per_step) // shards)
    return Layout(shares, data.tokens_per_user, data.sequence_length, config.page_size, shards)


def metrics_of(
    session: Session, evaluations: Mapping[int, Mapping[str, float]], measure: Measure = "nats_per_token"
) -> dict[str, Any]:
    """The held-out measure before and after training, as a revision records it; empty where nothing is held out."""
    found = [scores[session.policy] for _, scores in sorted(evaluations.items()) if session.policy in scores]
    return {f"heldout_{measure}": {"before": found[0], "after": found[-1]}} if found else {}


def _base_directory(config: TrainConfig) -> str:
    if config.base is None:
        raise PefxError("config field 'base' is not set; name the directory of the base whose adapters are trained")
    if not Path(config.base).is_dir():
        raise PefxError(f"config field 'base': {config.base}: no such directory")
    return config.base
