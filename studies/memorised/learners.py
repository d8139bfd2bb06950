"""Adapters that learn a memory each, as users of one run."""

import json
from dataclasses import dataclass
from pathlib import Path

from pefx.config import OptimizerConfig, UserConfig
from studies.memorised.cells import Cell
from studies.memorised.facts import memory

# Updates by slots of the memory, of 8 questions each: about a hundred times all of them.
STEPS = {2: 60, 8: 200, 16: 400, 32: 900, 64: 1500}


@dataclass(frozen=True)
class Learner:
    """An adapter of a cell that learns the memory of `slots` and `seed`, `times` as long as it is meant to."""

    cell: Cell
    slots: int
    seed: int
    rate: float
    times: int = 1

    @property
    def name(self) -> str:
        longer = f"-x{self.times}" if self.times > 1 else ""
        return f"{self.cell.label}-{self.slots}-lr{self.rate:g}{longer}/{self.seed}"

    def user(self, folder: Path) -> UserConfig:
        """Its place in a run; writes its memory. What it is measured on is what it learns."""
        path = folder / f"{self.slots}-{self.seed}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"prompt": one.prompt, "completion": one.answer} for one in memory(self.slots, self.seed).questions)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return UserConfig(
            self.name,
            train=str(path),
            heldout=str(path),
            adapter=self.cell.spec,
            optimizer=OptimizerConfig(learning_rate=self.rate, warmup_steps=10, final_fraction=0.02),
            seed=self.seed,
            steps=self.times * STEPS[self.slots],
        )
