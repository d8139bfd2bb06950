"""What a session has yet to learn from moves as text, to the bit."""

from dataclasses import fields, is_dataclass

import numpy as np

from pefx.config import PolicyLossConfig
from pefx.rl.lessons import pieces_of
from pefx.rl.pieces import from_json, to_json
from tests.rl_examples import plan_of, rollout


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and (a == b or a != a)


def test_round_trip() -> None:
    groups = [[rollout(g, 0, 1.0), rollout(g, 1, 0.1, drawn=1)] for g in range(4)]
    for loss in (PolicyLossConfig(), PolicyLossConfig("dpo", replay="sampler")):
        plan = plan_of(loss, prompts=4, accumulate=2)
        pieces = pieces_of(plan, groups, {}, 9, {"draws": 8.0})
        assert same(tuple(pieces), tuple(from_json(to_json(pieces))))
    assert from_json(to_json([])) == []
