"""Bases of several widths by the recipe of `configs/base_tasks.py`, which made the widest: `assets/base_tasks`."""

import re
from dataclasses import replace
from pathlib import Path

from pefx.config import CheckpointConfig, TrainConfig
from pefx.rl.tasks.text import build
from pefx.settings import read_file
from studies.programs.commands import ROOT, run, write_config
from studies.rewarded.runs import BASE

TEXT = ROOT / "build" / "tasks"
LINES = 400_000
WHOLE = 2400  # steps of the recipe
HEADS = {32: (2, 1, 16), 64: (4, 2, 16), 128: (4, 2, 32)}  # by width: heads, of keys and values, and the size of one
WIDTHS = tuple(HEADS)
FOLDER = ROOT / "runs" / "studies" / "bases"


def shaped(hidden: int, steps: int) -> TrainConfig:
    """The recipe at a width: all sizes are in proportion to it, so that every matrix is narrower by the same factor."""
    config = read_file("configs/base_tasks.py", TrainConfig)
    assert config.pretrain is not None
    heads, kv_heads, head_size = HEADS[hidden]
    widths = {"dense_hidden": 3 * hidden, "expert_hidden": 3 * hidden // 4}
    model = replace(config.pretrain.model, hidden=hidden, heads=heads, kv_heads=kv_heads, head_size=head_size, **widths)
    return replace(config, pretrain=replace(config.pretrain, model=model), steps=steps)


def base(hidden: int, steps: int = WHOLE) -> Path:
    """The directory of the base of a width; trained where it is not there, from where a run of it was cut."""
    if (hidden, steps) == (WIDTHS[-1], WHOLE):
        return BASE
    out = _folder(hidden, steps)
    if not (out / "base").is_dir():
        if not (TEXT / "heldout.jsonl").is_file():
            build(TEXT, LINES, levels=(1,))
        out.mkdir(parents=True, exist_ok=True)
        config = shaped(hidden, steps)
        assert config.pretrain is not None
        text = {"train": str(TEXT / "train.jsonl"), "heldout": str(TEXT / "heldout.jsonl")}
        config = replace(
            config,
            name=out.name,
            output=str(out / "run"),
            pretrain=replace(config.pretrain, export=str(out / "base"), **text),
            checkpoint=CheckpointConfig(every=200, keep=1),
        )
        run("train.py", write_config(out / "config.py", config))
    return out / "base"


def heldout_loss(hidden: int, steps: int = WHOLE) -> float:
    """Nats per token on held-out text after the last step, as its card says."""
    card = (base(hidden, steps) / "README.md").read_text(encoding="utf-8")
    found = re.search(r"Held-out loss: ([\d.]+) nats", card)
    assert found is not None
    return float(found[1])


def _folder(hidden: int, steps: int) -> Path:
    return FOLDER / f"base-tasks-{hidden}-{steps}"
