"""Attention that is steered by memories, layer after layer, against the formulas in float64 (2605.12357)."""

from dataclasses import replace

import numpy as np
import pytest

from kernels.delta_rule.reference import delta_rule
from pefx.adapters.bank import bank_spec, empty_bank, load_adapter
from pefx.adapters.methods.table import scale
from pefx.adapters.shared import fresh_adapter
from pefx.batch import TokenBatch
from pefx.config import AdapterSpec
from pefx.packing import COMMIT, FOLLOW, FRESH, GATHER, Sizes, Span, pack
from pefx.steps import TrainBatch, score
from pefx.training.remembering import flags
from tests.model_small import MODEL, PAGE, PLACES, TILE, TOKENS, Plain, make_base, random_tokens

LATENT = replace(
    MODEL, kv_rank=8, nope_head_size=4, rope_head_size=4, value_head_size=5, query_rank=7, query_key_norm=False
)


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.float32(0.3) * rng.normal(size=shape).astype(np.float32)


class Remembering(Plain):
    """The model, with a memory that goes from sequence to sequence."""

    def __init__(self, base, adapter, spec):
        super().__init__(base)
        assert adapter is not None
        self.memory, self.spec = {k: np.asarray(x, np.float64) for k, x in adapter["memory"].items()}, spec
        self.states = np.zeros((self.config.layers, spec.states, spec.rank, spec.rank))
        self.doing = np.zeros(0, np.int32)

    def _attention(self, x, weights, layer):
        own, spec = {name: value[layer] for name, value in self.memory.items()}, self.spec
        made = (x @ own["projections"].T).reshape(len(x), spec.states, 3, spec.rank)
        gates = (x @ own["gates"].T).reshape(len(x), spec.states, 1, spec.rank) + own["bias"][None, :, None]
        does = (self.doing & GATHER) > 0, (self.doing & COMMIT) > 0
        read, self.states[layer] = delta_rule(np.concatenate([made, gates], axis=2), *does, self.states[layer])
        self.read = scale(spec) * read.reshape(len(x), -1)
        self.steer = own
        return super()._attention(x, weights, layer)

    def _project(self, x, weights, name, layer):
        y = super()._project(x, weights, name, layer)
        named = {"q_proj": "steer_query", "o_proj": "steer_output"}.get(name)
        return y if named is None else y + self.read @ self.steer[named]


@pytest.mark.parametrize(("states", "writes"), [(1, "tokens"), (4, "tokens"), (1, "messages")])
def test_a_history_reaches_what_follows_as_the_formulas_say(states, writes):
    spec = AdapterSpec("delta_mem", 8, 16.0, ("memory",), states=states, writes=writes)
    base = make_base()
    rng, fresh = np.random.default_rng(3), fresh_adapter(base, spec, 1)
    adapter = {"memory": {name: x + noise(rng, x.shape) for name, x in fresh["memory"].items()}}
    history, text = random_tokens((21, 13))
    ends = np.arange(21) % 5 == 0  # the last one among them
    doing = [flags(np.ones(21, bool), writes, FRESH, ends), flags(np.arange(13) < 6, writes, FOLLOW)]
    spans = [Span(history, 0, 0, (0, 1), doing[0]), Span(text, 0, 0, (2,), doing[1])]
    fields = pack(spans, Sizes(0, TOKENS // TILE, PLACES, TOKENS // PAGE, PAGE, TILE, memory=True))
    targets = np.full(TOKENS, -1, np.int32)
    targets[2 * PAGE : 2 * PAGE + 12] = text[1:]
    bank = load_adapter(empty_bank(MODEL, bank_spec([spec]), 2, [spec]), 0, adapter, spec, base)
    batch = TrainBatch(TokenBatch(**fields), targets, (targets >= 0).astype(np.float32))
    found = np.asarray(score(base, bank, batch))[2 * PAGE : 2 * PAGE + 12]
    plain = Remembering(base, adapter, spec)
    for tokens, own in ((history, doing[0]), (text, doing[1])):
        plain.doing = own
        want = plain.logprobs(tokens)
    np.testing.assert_allclose(found, want[:12], rtol=0, atol=2e-5)
    plain.states[:] = 0
    plain.doing = doing[1]
    assert np.abs(plain.logprobs(text)[:12] - want[:12]).max() > 1e-2  # without the history it is another
