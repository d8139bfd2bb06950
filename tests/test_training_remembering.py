"""pefx.training.remembering: which tokens are written, and what lies before what is learned."""

from dataclasses import replace

import numpy as np
import pytest

from pefx.config import AdapterSpec
from pefx.data.formats import Example
from pefx.packing import COMMIT, FOLLOW, FRESH, GATHER
from pefx.training.planner import Layout, lay_out
from pefx.training.remembering import flags, remembered

MEMORY = AdapterSpec("delta_mem", 8, 16.0, ("memory",))
MESSAGES = replace(MEMORY, writes="messages")
BOTH = GATHER + COMMIT


def example(prompt: int, completion: int, history: tuple[int, ...] = ()) -> Example:
    count = prompt + completion
    messages = tuple(np.full(n, 50 + i, np.int32) for i, n in enumerate(history))
    return Example(np.arange(count, dtype=np.int32), np.arange(count) >= prompt, messages)


def test_tokens_are_written_one_by_one_and_messages_at_their_ends():
    written = np.asarray([True, True, False, True, True])
    assert flags(written, "tokens", FRESH).tolist() == [BOTH + FRESH, BOTH, 0, BOTH, BOTH]
    assert flags(written, "messages", FOLLOW).tolist() == [GATHER + FOLLOW, BOTH, 0, GATHER, BOTH]
    ends = np.asarray([False, False, False, True, False])
    assert flags(written, "messages", 0, ends).tolist() == [GATHER, GATHER, 0, BOTH, GATHER]


def test_an_adapter_without_memories_does_nothing_to_them():
    found = remembered(example(2, 3), AdapterSpec(), 32, 1)
    assert found.memory is None
    assert found.before == ()


def test_a_prompt_is_written_and_what_is_learned_is_not():
    found = remembered(example(3, 2), MEMORY, 32, 1)
    assert found.memory is not None
    assert found.memory.tolist() == [BOTH + FRESH, BOTH, BOTH, 0]
    text = remembered(replace(example(1, 4)), MEMORY, 32, 1)  # all of it is learned
    assert text.memory is not None
    assert text.memory.tolist() == [BOTH + FRESH, BOTH, BOTH, BOTH]


@pytest.mark.parametrize("spec", [MEMORY, MESSAGES])
def test_a_history_lies_before_in_pieces_and_alone_is_written(spec):
    found = remembered(example(3, 2, (5, 6)), spec, 8, 1)
    assert found.memory is not None
    assert found.memory.tolist() == [FOLLOW, 0, 0, 0]
    first, second = found.before
    assert (len(first.tokens), len(second.tokens)) == (8, 3)
    one = BOTH if spec is MEMORY else GATHER
    assert first.memory is not None
    assert second.memory is not None
    assert first.memory.tolist() == [one + FRESH, *[one] * 3, BOTH, *[one] * 3]
    assert second.memory.tolist() == [one + FOLLOW, one, BOTH]
    assert not first.weights.any()
    assert (first.targets == -1).all()
    assert found.pages(4) == 2 + 1 + 1
    fields = lay_out([[[found]]], Layout(1, 64, 8, 16, memory=True))
    tokens = fields["tokens"]
    assert tokens["sequences"][[0, 16, 32]].tolist() == [0, 1, 2]
    assert tokens["positions"][[0, 16, 32]].tolist() == [0, 0, 0]
    assert tokens["memory"][[0, 16, 32]].tolist() == [one + FRESH, one + FOLLOW, FOLLOW]
    assert fields["weights"].nonzero()[0].tolist() == [34, 35]
