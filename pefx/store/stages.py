"""How a revision comes to users, as a table: stages, and the actions that lead from one to another.

    committed -> registered -> prewarmed -> exposed
        ^______________|___________|___________|  withdraw

The catalog keeps a stage for each revision, for everyone (`pefx.store.lifecycle.move_stage`); a server keeps its own,
for what it holds (`pefx.store.readiness`). "retired" is for good, and only the catalog's to say.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from pefx.errors import PefxError

StageState = Literal["committed", "registered", "prewarmed", "exposed", "retired"]
Action = Literal["register", "prewarm", "expose", "select", "withdraw", "retire"]
STAGES: tuple[StageState, ...] = get_args(StageState)


@dataclass(frozen=True)
class Transition:
    """An action that leads from any stage of `before` to the stage `after`."""

    before: tuple[StageState, ...]
    after: StageState


TRANSITIONS: dict[Action, Transition] = {
    "register": Transition(("committed",), "registered"),
    "prewarm": Transition(("registered",), "prewarmed"),
    "expose": Transition(("prewarmed",), "exposed"),
    "select": Transition(("exposed",), "exposed"),
    "withdraw": Transition(("registered", "prewarmed", "exposed"), "committed"),
    "retire": Transition(("committed", "registered", "prewarmed", "exposed"), "retired"),
}


def next_stage(action: Action, stage: StageState, name: str) -> StageState:
    """The stage that `action` leads to. PefxError kind "wrong_stage", naming the revision `name`, if it may not."""
    transition = TRANSITIONS[action]
    if stage not in transition.before:
        message = f"revision {name} is {stage}: to {action} it, it must be {' or '.join(transition.before)}"
        raise PefxError(message, "wrong_stage")
    return transition.after
