"""A sampler over the very bank that is trained: what a run draws its answers with."""

from collections import deque

import jax
import jax.numpy as jnp

from pefx.adapters.bank import Bank
from pefx.config import TrainConfig
from pefx.data.tokenizer import Tokenizer
from pefx.loading import load_base
from pefx.mesh import placement
from pefx.packing import whole_pages
from pefx.rl.live_engine import LiveEngine
from pefx.rl.sampler import Sampler
from pefx.serving.assembly import EngineSize
from pefx.serving.live import Held, LiveRevision
from pefx.training.adapters import AdapterTraining


class ResidentSampler:
    """Made at first use, within the mesh of the run. With `sampler.stale` it draws from copies of older banks."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, routes: bool):
        self._config, self._tokenizer, self._routes = config, tokenizer, routes
        self._engine: LiveEngine | None = None
        self._sampler: Sampler | None = None
        self._older: deque[tuple[Bank, list[Held]]] = deque(maxlen=config.sampler.stale + 1)

    def at(self, training: AdapterTraining, stale: bool = True) -> tuple[Sampler, dict[str, LiveRevision]]:
        """The sampler, and the revision of each policy that it draws from: as policies are now, or, where `stale` is
        allowed and configured, as they were.
        """
        bank, held = training.bank, [self._held(training, index) for index in training.resident.here]
        if self._config.sampler.stale and stale:
            self._older.append((jax.tree.map(jnp.copy, bank), held))
            bank, held = self._older[0]
        if self._engine is None:
            self._engine = self._made(training, bank, held)
        self._engine.hold(bank, held)
        if self._sampler is None:
            self._sampler = Sampler(self._engine.engine, self._tokenizer, self._routes)
        return self._sampler, {one.revision.policy: one.revision for one in held}

    def _held(self, training: AdapterTraining, index: int) -> Held:
        session, micro = training.sessions[index], training.progress[index].micro
        revision = LiveRevision(session.policy, micro // session.accumulate, self._config.output, session.spec)
        return Held(revision, session.shard, session.slot)

    def _made(self, training: AdapterTraining, bank: Bank, held: list[Held]) -> LiveEngine:
        config, base = self._config, training.base
        weights = config.sampler.weights
        if weights not in (None, config.base_weights):
            assert config.base is not None
            base, _ = load_base(config.base, config.precision, placement(), weights)
        size = EngineSize(config.sampler.sequences, config.sampler.step_tokens, config.page_size, self._pages(training))
        return LiveEngine(base, bank, held, mesh=training.mesh, tokenizer=self._tokenizer, size=size)

    def _pages(self, training: AdapterTraining) -> int:
        """Pages for as many answers as are drawn at once, none longer than what can be learned from; and each shard
        has those of the longest that the base can read.
        """
        config, context = self._config, training.base.config.context
        usual = whole_pages(min(config.data.sequence_length, context), config.page_size)
        return max(config.sampler.sequences * usual, training.mesh.rows * whole_pages(context, config.page_size))
