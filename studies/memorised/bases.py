"""Bases of several widths by the recipe of `configs/base_tasks.py`: the same text, fewer steps, as many for all."""

from dataclasses import replace
from pathlib import Path

from pefx.config import CheckpointConfig, TrainConfig
from pefx.rl.tasks.text import build
from pefx.settings import read_file
from pefx.training.journal import METRICS, read_rows
from studies.programs.commands import ROOT, run, write_config

TEXT = ROOT / "build" / "tasks"
LINES = 400_000
STEPS = 600
HEADS = {32: (2, 1, 16), 64: (4, 2, 16), 128: (4, 2, 32)}  # by width: heads, of keys and values, and the size of one
WIDTHS = tuple(HEADS)
FOLDER = ROOT / "runs" / "studies" / "bases"


def shaped(hidden: int) -> TrainConfig:
    """The recipe at a width: all sizes are in proportion to it, so that every matrix is narrower by the same factor."""
    config = read_file("configs/base_tasks.py", TrainConfig)
    assert config.pretrain is not None
    heads, kv_heads, head_size = HEADS[hidden]
    widths = {"dense_hidden": 3 * hidden, "expert_hidden": 3 * hidden // 4}
    model = replace(config.pretrain.model, hidden=hidden, heads=heads, kv_heads=kv_heads, head_size=head_size, **widths)
    return replace(
        config,
        name=f"base-tasks-{hidden}",
        pretrain=replace(config.pretrain, model=model),
        checkpoint=CheckpointConfig(every=200, keep=1),
        steps=STEPS,
    )


def base(hidden: int) -> Path:
    """The directory of the base of a width; trained where it is not there, from where a run of it was cut."""
    out = FOLDER / str(hidden)
    if not (out / "base").is_dir():
        if not (TEXT / "heldout.jsonl").is_file():
            build(TEXT, LINES, levels=(1,))
        out.mkdir(parents=True, exist_ok=True)
        config = shaped(hidden)
        assert config.pretrain is not None
        text = {"train": str(TEXT / "train.jsonl"), "heldout": str(TEXT / "heldout.jsonl")}
        exported = replace(config.pretrain, export=str(out / "base"), **text)
        run("train.py", write_config(out / "config.py", replace(config, output=str(out / "run"), pretrain=exported)))
    return out / "base"


def heldout_loss(hidden: int) -> float:
    """Nats per token on held-out text, after the last step."""
    return next(row["loss"] for row in reversed(read_rows(FOLDER / str(hidden) / "run" / METRICS)) if "loss" in row)
