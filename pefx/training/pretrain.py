"""Training of a base from random weights: the same loop, a step that updates the base itself, an export at the end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pefx import steps
from pefx.config import PretrainConfig, TrainConfig
from pefx.data.tokenizer import Tokenizer
from pefx.distributed import owner, several
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.mesh import by_row, fetch, of_base, on_mesh, place, resolved, share, whole
from pefx.model import Base
from pefx.optim import Hyper
from pefx.training.heldout import Exam, device_batch, nats_per_token
from pefx.training.journal import Measure
from pefx.training.loop import Outcome, StepReport, drive, mark_finished
from pefx.training.model_card import model_card
from pefx.training.planner import Layout, Lesson, lay_out
from pefx.training.schedule import learning_rates
from pefx.training.windows import Windows


class BaseTraining:
    """A `Trainee` whose state is the base and its optimizer, and whose data position is the step."""

    def __init__(self, config: TrainConfig, pretrain: PretrainConfig, shards: int = 1):
        if config.accumulate != 1:
            raise PefxError(f"config field 'accumulate' is {config.accumulate}; a base is trained with accumulate=1")
        length = config.data.sequence_length
        if length > pretrain.model.context:
            raise PefxError(f"data.sequence_length is {length}, the model's context only {pretrain.model.context}")
        tokenizer = Tokenizer.load(pretrain.tokenizer)
        if tokenizer.vocab_size != pretrain.model.vocab_size:
            raise PefxError(
                f"{pretrain.tokenizer}: has {tokenizer.vocab_size} tokens, the model config {pretrain.model.vocab_size}"
            )
        self.config = config
        self.steps = config.steps
        self.windows = Windows(pretrain.train, tokenizer, length)
        self.heldout = Windows(pretrain.heldout, tokenizer, length)
        self._order = self.windows.shuffled(config.data.seed)
        if pretrain.batch_tokens % shards:
            raise PefxError(f"pretrain.batch_tokens is {pretrain.batch_tokens}, which {shards} shards do not divide")
        self.layout = Layout(1, pretrain.batch_tokens // shards, length, config.page_size, shards)
        self.per_shard = self.layout.share // (self.layout.sizes.blocks * config.page_size)
        self.rates = learning_rates(config.optimizer, config.steps)
        self.base = place(of_base, Base(pretrain.model, nnx.Rngs(config.seed)))
        self.opt = place(of_base, steps.init_pretrain(self.base))

    def advance(self, step: int) -> Any:
        each, shards = self.per_shard, self.layout.shards
        order = [self._lesson(self._order[step * each * shards + index]) for index in range(each * shards)]
        lessons = [[order[shard * each : (shard + 1) * each]] for shard in range(shards)]
        batch = share(by_row, device_batch(lay_out(lessons, self.layout)))
        self.base, self.opt, metrics = steps.pretrain_step(
            self.base, self.opt, batch, share(of_base, self._hyper(step)), remat=self.config.remat
        )
        return whole(metrics)

    def report(self, step: int, pending: Any) -> StepReport:
        metrics = jax.device_get(pending)
        loss, tokens = float(metrics.loss), float(metrics.tokens)
        values = {
            "loss": loss,
            "tokens": tokens,
            "gradient_norm": float(metrics.gradient_norm),
            "balance": float(metrics.balance),
            "learning_rate": float(self.rates[step]),
        }
        return StepReport(loss, tokens, {"base": values})

    def evaluate(self) -> dict[str, float]:
        budget = max(self.config.data.heldout_tokens // self.windows.length, 1)
        # Windows spread over the whole held-out text, not its first document.
        chosen = np.unique(np.linspace(0, len(self.heldout) - 1, min(budget, len(self.heldout))).astype(int))
        exam = Exam(tuple(self._lesson(self.heldout[int(index)]) for index in chosen), -1)
        return {"base": nats_per_token(self.base, None, [exam], self.layout)[0]}

    def measure(self, name: str) -> Measure:
        return "nats_per_token"

    def decide(self, scores: Mapping[str, float]) -> Mapping[str, int]:
        return {}

    def state(self) -> Any:
        return {"base": self.base, "opt": self.opt}

    def host(self) -> dict[str, Any]:
        return {"train": self.windows.fingerprint, "heldout": self.heldout.fingerprint}

    def restore(self, host: Mapping[str, Any], load: Callable[[Any], Any]) -> None:
        for field, now in self.host().items():
            if host[field] != now:
                raise PefxError(f"{self.config.output}: the text of pretrain.{field} changed since the run began")
        state = load(self.state())
        self.base, self.opt = state["base"], state["opt"]

    def saved(self, step: int) -> None:
        """A base has no sessions in a catalog."""

    def _lesson(self, window: np.ndarray) -> Lesson:
        return Lesson(window[:-1], window[1:], np.ones(self.windows.length, np.float32), -1)

    def _hyper(self, step: int) -> Hyper:
        optimizer = self.config.optimizer
        names = ("weight_decay", "clip", "beta1", "beta2", "epsilon")
        scalars = {name: jnp.float32(getattr(optimizer, name)) for name in names}
        return Hyper(learning_rate=jnp.float32(self.rates[step]), **scalars)


def pretrain(config: TrainConfig, pretrain_config: PretrainConfig) -> int:
    """Train a base and export it in Hugging Face layout with a model card; returns the exit code."""
    mesh = resolved(config.mesh, pretrain_config.batch_tokens // config.data.sequence_length)
    with on_mesh(mesh):
        trainee, outcome = drive(lambda: BaseTraining(config, pretrain_config, mesh.rows), config)
    if outcome.exit_code:
        return outcome.exit_code
    if several():
        trainee.base = fetch(trainee.base)
    if owner():
        _export(config, pretrain_config, trainee, outcome)
    return outcome.exit_code


def _export(config: TrainConfig, target: PretrainConfig, trainee: BaseTraining, outcome: Outcome) -> None:
    tokenizer = Path(target.tokenizer)
    tokenizer_json = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainee.base))
    card = model_card(config, target, outcome, parameters, len(trainee.windows.tokens))
    digest = save_base(trainee.base, target.export, tokenizer_json, card, target.stored_precision)
    loss = outcome.evaluations[config.steps]["base"]
    mark_finished(config, {"export": target.export, "digest": digest, "heldout_loss": loss})
    print(f"{config.name}  wrote {target.export}: {parameters:,} parameters, held-out {loss:.4f} nats per token")
