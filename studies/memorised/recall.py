"""What adapters of a catalog recall of their memories, asked greedily with nothing in the context."""

import json
from collections.abc import Mapping
from pathlib import Path

from pefx.config import ServeConfig
from studies.memorised.cells import ATTENTION, MLP
from studies.memorised.facts import Memory
from studies.memorised.measured import ALL
from studies.programs.commands import answer

TARGETS = (*ATTENTION, *MLP, "unembed")
TOKENS = 4  # a name, a byte a letter, and its end


def recalled(base: Path, folder: Path, memories: Mapping[str, Memory]) -> dict[str, dict[str, float]]:
    """By policy and kind the share of questions that are answered to the letter; `ALL` of all that is asked. Kinds of
    which a memory asks nothing are left out.
    """
    asked = [(policy, one) for policy, memory in memories.items() for one in memory.questions if one.kind]
    config = ServeConfig(
        "recall", str(base), str(folder / "catalog"), slots=64, sequences=64, targets=TARGETS,
        expert_form="shared_hidden", max_rank=8, page_size=16,
    )  # fmt: skip
    rows = (
        {"id": str(number), "prompt": one.prompt, "policy": policy, "temperature": 0.0, "max_tokens": TOKENS}
        for number, (policy, one) in enumerate(asked)
    )
    right: dict[str, dict[str, list[bool]]] = {policy: {} for policy in memories}
    with answer(config, rows, folder, "recall").open() as file:
        for (policy, one), line in zip(asked, file, strict=True):
            for kind in (one.kind, ALL):
                right[policy].setdefault(str(kind), []).append(json.loads(line)["text"] == one.answer)
    return {policy: {kind: sum(own) / len(own) for kind, own in by.items()} for policy, by in right.items()}
