"""The table of stages: whole, and nothing leads where it does not say."""

import pytest

from pefx.errors import PefxError
from pefx.store.stages import STAGES, TRANSITIONS, next_stage


def test_the_table_is_whole() -> None:
    assert {t.after for t in TRANSITIONS.values()} | {"committed"} == set(STAGES)
    assert all(set(t.before) <= set(STAGES) for t in TRANSITIONS.values())
    for action, transition in TRANSITIONS.items():
        for stage in STAGES:
            if stage in transition.before:
                assert next_stage(action, stage, "a@1") == transition.after
            else:
                words = f"revision a@1 is {stage}: to {action} it, it must be {' or '.join(transition.before)}"
                with pytest.raises(PefxError, match=words) as caught:
                    next_stage(action, stage, "a@1")
                assert caught.value.kind == "wrong_stage"
