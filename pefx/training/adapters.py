"""Training of many adapters at once over one frozen base: sessions, their data, their slots, their commits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kernels.paged_attention.api import query_tile
from pefx import steps
from pefx.adapters.bank import bank_spec, empty_bank, load_adapter, read_adapter
from pefx.adapters.methods import init_adapter
from pefx.config import DataConfig, ModelConfig, TrainConfig, UserConfig
from pefx.data.pipeline import heldout_set, train_stream
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.huggingface import load_base, read_config
from pefx.optim import init_opt
from pefx.store.catalog import Catalog, check_name
from pefx.training.heldout import Exam, device_batch, nats_per_token
from pefx.training.loop import Outcome, StepReport
from pefx.training.planner import Layout, Lesson, lay_out, lesson
from pefx.training.schedule import learning_rates
from pefx.training.sessions import HyperTable, Progress, Session, make_sessions, take_turns


class AdapterTraining:
    """A `Trainee` of one session per user. Device state: the bank and its optimizer; host state: positions."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.sessions = make_sessions(config)
        for session in self.sessions:
            check_name(session.policy)
        directory = _base_directory(config)
        shape = read_config(directory)
        self.layout = step_layout(config, len(self.sessions), shape)
        length = config.data.sequence_length
        if length > shape.context:
            raise PefxError(f"data.sequence_length is {length}, longer than the base's context of {shape.context}")
        tokenizer = Tokenizer.load(directory)
        self.streams = [train_stream(session.user, config.data, tokenizer) for session in self.sessions]
        self.heldout = [heldout_lessons(session.user, config.data, tokenizer) for session in self.sessions]
        self.turns = take_turns(self.sessions, self.layout.shares)
        self.steps = len(self.turns)
        rates = [learning_rates(session.optimizer, session.steps) for session in self.sessions]
        self.hypers = HyperTable(self.sessions, rates, len(self.sessions))
        self.progress = [Progress() for _ in self.sessions]
        self.base, self.digest = load_base(directory, config.precision)
        self.model = self.base.config
        bank = empty_bank(self.model, bank_spec([s.spec for s in self.sessions]), len(self.sessions))
        for session in self.sessions:
            fresh = init_adapter(self.model, session.spec, session.seed)
            bank = load_adapter(bank, session.slot, fresh, session.spec)
        self.bank = bank
        self.opt = init_opt(bank)
        # Opened before anything is trained for it: a catalog that cannot be written is an error now, not in an hour.
        self.catalog = Catalog.open(config.catalog, create=True) if config.catalog is not None else None

    def advance(self, step: int) -> Any:
        active = self.turns[step]
        shares: list[list[Lesson]] = []
        hyper: dict[str, Any] = self.hypers.fields(active, self.progress, self.layout.shares)
        for place, index in enumerate(active):
            stream, at = self.streams[index], self.progress[index].position
            examples, position = stream.take(at, self.layout.share, self.layout.page_size)
            shares.append([lesson(example.tokens, example.loss, place) for example in examples])
            self.progress[index] = self.progress[index].after(position)
        batch = device_batch(lay_out(shares, self.layout))
        self.bank, self.opt, metrics = steps.train_step(
            self.base, self.bank, self.opt, batch, steps.TrainHyper(**hyper)
        )
        # The log-probabilities of every token stay behind: nothing reads them here.
        return metrics.loss, metrics.tokens, metrics.gradient_norm, hyper["learning_rate"]

    def report(self, step: int, pending: Any) -> StepReport:
        losses, tokens, norms, rates = (np.asarray(values, np.float64) for values in jax.device_get(pending))
        by_name: dict[str, dict[str, float]] = {}
        for place, index in enumerate(self.turns[step]):
            by_name[self.sessions[index].policy] = {
                "loss": float(losses[place]),
                "tokens": float(tokens[place]),
                "gradient_norm": float(norms[place]),
                "learning_rate": float(rates[place]),
            }
        active = slice(len(self.turns[step]))
        total = float(tokens[active].sum())
        return StepReport(float((losses * tokens)[active].sum()) / max(total, 1e-30), total, by_name)

    def evaluate(self) -> dict[str, float]:
        chosen = [index for index, lessons in enumerate(self.heldout) if lessons]
        exams = [Exam(self.heldout[index], self.sessions[index].slot) for index in chosen]
        scores = nats_per_token(self.base, self.bank, exams, self.layout) if exams else []
        return {self.sessions[index].policy: value for index, value in zip(chosen, scores, strict=True)}

    def state(self) -> Any:
        return {"bank": self.bank, "opt": self.opt}

    def host(self) -> dict[str, Any]:
        users = {
            session.policy: {"micro": done.micro, "position": done.position, "data": stream.fingerprint}
            for session, done, stream in zip(self.sessions, self.progress, self.streams, strict=True)
        }
        return {"base": self.digest, "users": users}

    def restore(self, state: Any, host: Mapping[str, Any]) -> None:
        if host["base"] != self.digest:
            raise PefxError(
                f"{self.config.base}: is base {self.digest}; the run in {self.config.output} began with {host['base']}"
            )
        for index, session in enumerate(self.sessions):
            saved = host["users"][session.policy]
            if saved["data"] != self.streams[index].fingerprint:
                raise PefxError(
                    f"{session.user.train}: the data of user '{session.policy}' changed since the run in "
                    f"{self.config.output} began; restore it, or choose another output directory"
                )
            self.progress[index] = Progress(saved["micro"], saved["position"])
        self.bank, self.opt = state["bank"], state["opt"]

    def commit(self, outcome: Outcome) -> dict[str, dict[str, Any]]:
        """Commit every adapter as a revision of its policy. Doing it twice changes nothing.

        Returns number and content hash by policy; nothing without a catalog.
        """
        committed: dict[str, dict[str, Any]] = {}
        if self.catalog is None:
            return committed
        for session, stream in zip(self.sessions, self.streams, strict=True):
            revision = self.catalog.commit(
                session.policy,
                adapter=read_adapter(self.bank, session.slot, self.model, session.spec),
                spec=session.spec,
                base=self.digest,
                step=session.steps,
                seed=session.seed,
                config=session.provenance(self.config),
                data_fingerprint=stream.fingerprint,
                evaluation=evaluation_of(session, outcome.evaluations, self.steps),
            )
            committed[session.policy] = {"revision": revision.number, "content_hash": revision.content_hash}
        return committed


def heldout_lessons(user: UserConfig, data: DataConfig, tokenizer: Tokenizer) -> tuple[Lesson, ...]:
    """A user's held-out examples, none when it has no file; raises PefxError naming user, file and line."""
    return tuple(lesson(example.tokens, example.loss, -1) for example in heldout_set(user, data, tokenizer))


def step_layout(config: TrainConfig, users: int, base: ModelConfig) -> Layout:
    """The one shape of a run's training steps."""
    data = config.data
    tile = query_tile(base.heads, base.kv_heads)
    return Layout(min(users, data.users_per_step), data.tokens_per_user, data.sequence_length, config.page_size, tile)


def evaluation_of(session: Session, evaluations: Mapping[int, Mapping[str, float]], last: int) -> dict[str, Any]:
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
