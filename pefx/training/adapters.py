"""Training of many adapters at once over one frozen base: sessions, their data, their slots, their commits."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pefx import steps
from pefx.adapters.bank import bank_spec, by_slot, empty_bank, load_adapter, put_slots, read_adapter, take_slots
from pefx.adapters.methods import init_adapter
from pefx.compiler import jit
from pefx.config import DataConfig, MeshConfig, TrainConfig, UserConfig
from pefx.data.pipeline import heldout_set, train_stream
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import owner
from pefx.errors import PefxError
from pefx.families.config_json import read_config
from pefx.loading import load_base
from pefx.mesh import by_row, check_divides, fetch, made, of_base, place, placement, share, whole
from pefx.optim import init_opt
from pefx.packing import beside
from pefx.store.catalog import Catalog
from pefx.store.commits import Draft
from pefx.store.names import check_name
from pefx.store.sessions import Wanted
from pefx.training.heldout import Exam, device_batch, nats_per_token
from pefx.training.loop import Outcome, StepReport
from pefx.training.planner import Layout, Lesson, lay_out, lesson
from pefx.training.schedule import learning_rates
from pefx.training.sessions import HyperTable, Progress, Session, make_sessions, take_turns
from pefx.training.tenure import Tenure

ALONE = MeshConfig(data=1)


class AdapterTraining:
    """A `Trainee` of one session per user. Device state: the bank and its optimizer; host state: positions.

    Built within the mesh it runs on: sessions are dealt out to its shards of rows, which have slots of their own.
    """

    def __init__(self, config: TrainConfig, mesh: MeshConfig = ALONE):
        self.config, shards = config, mesh.rows
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
        tokenizer = Tokenizer.load(directory)
        self.streams = [train_stream(session.user, config.data, tokenizer) for session in self.sessions]
        self.heldout = [heldout_lessons(session.user, config.data, tokenizer) for session in self.sessions]
        rates = [learning_rates(session.optimizer, session.steps) for session in self.sessions]
        self.slots = -(-len(self.sessions) // shards)  # of each shard
        self.hypers = HyperTable(self.sessions, rates, self.slots)
        self._go_on_from(0, [Progress() for _ in self.sessions])
        self.base, self.digest = load_base(directory, config.precision, placement(), config.base_weights)
        self.model = self.base.config
        spec, slots = bank_spec([s.spec for s in self.sessions]), shards * self.slots
        bank = made(by_slot, lambda: empty_bank(self.model, spec, slots))
        for session in self.sessions:
            fresh = init_adapter(self.model, session.spec, session.seed)
            bank = load_adapter(bank, self._place(session), fresh, session.spec)
        self.bank = bank
        self.opt = made(by_slot, lambda: init_opt(bank, accumulate=config.accumulate > 1))
        # Opened before anything is trained for it: a catalog that cannot be written is an error now, not in an hour.
        self.catalog = None
        if config.catalog is not None and owner():
            self.catalog = Catalog.open(config.catalog, create=True)
        self.tenure = Tenure(self.catalog, config.output)

    def _go_on_from(self, step: int, progress: list[Progress]) -> None:
        """`step` steps are done, the sessions stand at `progress`: what is left follows."""
        self.done, self.progress = step, progress
        turns = take_turns(self.sessions, progress, self.layout.shares, self.layout.shards)
        self.turns = dict(enumerate(turns, step))
        self.steps = step + len(turns)

    def _place(self, session: Session) -> int:
        """A session's slot in the bank of all shards."""
        return session.shard * self.slots + session.slot

    def advance(self, step: int) -> Any:
        self.tenure.begin(Wanted(session.policy, self.digest, session.spec) for session in self.sessions)
        lessons: list[list[list[Lesson]]] = []
        hypers: list[dict[str, Any]] = []
        for active in self.turns[step]:
            hypers.append(self.hypers.fields(active, self.progress, self.layout.shares))
            lessons.append([self._lessons(index, row) for row, index in enumerate(active)])
        batch, hyper = share(by_row, device_batch(lay_out(lessons, self.layout))), beside(hypers)
        numbers = share(by_row, steps.TrainHyper(**hyper))
        self.bank, self.opt, metrics = steps.train_step(
            self.base, self.bank, self.opt, batch, numbers, remat=self.config.remat
        )
        self.done = step + 1
        # The log-probabilities of every token stay behind: nothing reads them here.
        return *whole((metrics.loss, metrics.tokens, metrics.gradient_norm)), hyper["learning_rate"]

    def _lessons(self, index: int, row: int) -> list[Lesson]:
        """The next examples of a session, active row `row` of its shard's step; its position moves on."""
        layout = self.layout
        examples, position = self.streams[index].take(self.progress[index].position, layout.share, layout.page_size)
        self.progress[index] = self.progress[index].after(position)
        return [lesson(example.tokens, example.loss, row) for example in examples]

    def report(self, step: int, pending: Any) -> StepReport:
        losses, tokens, norms, rates = (np.asarray(values, np.float64) for values in fetch(pending))
        by_name: dict[str, dict[str, float]] = {}
        active = {
            shard * self.layout.shares + row: index
            for shard, indices in enumerate(self.turns[step])
            for row, index in enumerate(indices)
        }
        for row, index in active.items():
            by_name[self.sessions[index].policy] = {
                "loss": float(losses[row]),
                "tokens": float(tokens[row]),
                "gradient_norm": float(norms[row]),
                "learning_rate": float(rates[row]),
            }
        rows = list(active)
        total = float(tokens[rows].sum())
        return StepReport(float((losses * tokens)[rows].sum()) / max(total, 1e-30), total, by_name)

    def evaluate(self) -> dict[str, float]:
        chosen = [index for index, lessons in enumerate(self.heldout) if lessons]
        exams = [Exam(self.heldout[i], self.sessions[i].slot, self.sessions[i].shard) for i in chosen]
        scores = nats_per_token(self.base, self.bank, exams, self.layout) if exams else []
        return {self.sessions[index].policy: value for index, value in zip(chosen, scores, strict=True)}

    def state(self) -> Any:
        # In the order of the sessions, not of slots: a run may go on with another number of shards.
        return _take({"bank": self.bank, "opt": self.opt}, self._places())

    def _places(self) -> Any:
        return share(of_base, np.asarray([self._place(session) for session in self.sessions], np.int32))

    def host(self) -> dict[str, Any]:
        users = {
            session.policy: {"micro": done.micro, "position": done.position, "data": stream.fingerprint}
            for session, done, stream in zip(self.sessions, self.progress, self.streams, strict=True)
        }
        return {"base": self.digest, "step": self.done, "users": users, "sessions": self.tenure.numbers}

    def restore(self, state: Any, host: Mapping[str, Any]) -> None:
        if host["base"] != self.digest:
            raise PefxError(
                f"{self.config.base}: is base {self.digest}; the run in {self.config.output} began with {host['base']}"
            )
        progress: list[Progress] = []
        for index, session in enumerate(self.sessions):
            saved = host["users"][session.policy]
            if saved["data"] != self.streams[index].fingerprint:
                raise PefxError(
                    f"{session.user.train}: the data of user '{session.policy}' changed since the run in "
                    f"{self.config.output} began; restore it, or choose another output directory"
                )
            progress.append(Progress(saved["micro"], saved["position"]))
        self.tenure.go_on(host.get("sessions", {}))
        self._go_on_from(host["step"], progress)
        restored = _put({"bank": self.bank, "opt": self.opt}, self._places(), state)
        self.bank, self.opt = place(by_slot, restored["bank"]), place(by_slot, restored["opt"])

    def saved(self, step: int) -> None:
        self.tenure.checkpointed(step)

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

    def _drafts(self, outcome: Outcome) -> Iterator[Draft]:
        """The adapters as they are now; reading one is the work of all processes."""
        for session, stream in zip(self.sessions, self.streams, strict=True):
            yield Draft(
                policy=session.policy,
                adapter=read_adapter(self.bank, self._place(session), self.model, session.spec),
                spec=session.spec,
                base=self.digest,
                step=session.steps,
                seeds={"run": session.seed, "data": self.config.data.seed},
                config=session.provenance(self.config),
                data_fingerprint=stream.fingerprint,
                metrics=metrics_of(session, outcome.evaluations, self.steps),
                session=self.tenure.numbers.get(session.policy, 0),
            )


def heldout_lessons(user: UserConfig, data: DataConfig, tokenizer: Tokenizer) -> tuple[Lesson, ...]:
    """A user's held-out examples, none when it has no file; raises PefxError naming user, file and line."""
    return tuple(lesson(example.tokens, example.loss, -1) for example in heldout_set(user, data, tokenizer))


def step_layout(config: TrainConfig, users: int, shards: int) -> Layout:
    """The one shape of a run's training steps."""
    data = config.data
    shares = -(-min(users, data.users_per_step) // shards)
    return Layout(shares, data.tokens_per_user, data.sequence_length, config.page_size, shards)


_take, _put = jit(take_slots), jit(put_slots)


def metrics_of(session: Session, evaluations: Mapping[int, Mapping[str, float]], last: int) -> dict[str, Any]:
    """Held-out nats per token before and after training, as a revision records it; empty without held-out text."""
    before, after = evaluations.get(0, {}), evaluations.get(last, {})
    if session.policy not in after:
        return {}
    return {"heldout_nats_per_token": {"before": before[session.policy], "after": after[session.policy]}}


def _base_directory(config: TrainConfig) -> str:
    if config.base is None:
        raise PefxError("config field 'base' is not set; name the directory of the base whose adapters are trained")
    if not Path(config.base).is_dir():
        raise PefxError(f"config field 'base': {config.base}: no such directory")
    return config.base
