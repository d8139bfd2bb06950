"""`python -m pefx.demo`: eight personal adapters over one frozen base, from text to served answers, with the proof.

Trains the users of `configs/train_users.py` together, scores every adapter on every user's held-out text, and serves
all of them from shared batches, comparing what was served with what training computes, token by token, in bits.
Everything is written to the output directory of that config; a second start goes on where the first one was.
Exit code 1: a claim failed.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pefx import steps
from pefx.adapters.bank import Bank, bank_spec, empty_bank, load_adapter
from pefx.config import ServeConfig, TrainConfig
from pefx.data import stdlib_text
from pefx.data.pipeline import heldout_set
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.loading import load_base
from pefx.model import Base
from pefx.optim import init_opt
from pefx.progress import clock
from pefx.serving.run import serve_file
from pefx.settings import load_config
from pefx.store.catalog import Catalog, require_base
from pefx.training.adapters import step_layout
from pefx.training.heatmap import draw_heatmap
from pefx.training.heldout import Exam, device_batch, nats_per_token
from pefx.training.planner import Layout, Lesson, lay_out, lesson
from pefx.training.run import train

Rows = list[dict[str, Any]]
CONFIG = "configs/train_users.py"
SAMPLED = 32  # tokens each request samples
PER_USER = 2  # requests of each user, and of the base
LEAST_TOKENS = 2000  # compared between training and serving
BEST_OF_ROW = 7 / 8  # users for whom no other adapter may do better


@dataclass(frozen=True)
class World:
    """What was trained, read back from disk: the base, and the newest revision of user i in slot i of a bank."""

    config: TrainConfig
    base: Base
    bank: Bank
    tokenizer: Tokenizer
    layout: Layout

    @property
    def names(self) -> list[str]:
        return [user.name for user in self.config.users]


def main() -> int:
    """Run the demo; returns the exit code."""
    started = time.perf_counter()
    console = Console(highlight=False, soft_wrap=True)
    config = load_config(CONFIG, TrainConfig)
    build_data(config)
    code = train(config)
    if code:
        return code
    world = read_back(config)
    own = judge(world, console)
    same = compare(world, *serve(world), console)
    console.print(f"pictures: {Path(config.output) / 'curves.png'}, {Path(config.output) / 'heatmap.png'}")
    console.print(f"demo finished in {clock(time.perf_counter() - started)}")
    return 0 if own and same else 1


def build_data(config: TrainConfig) -> None:
    """Write the users' text from this Python's standard library, unless it is there."""
    missing = [path for user in config.users for path in (user.train, user.heldout) if path and not Path(path).exists()]
    if missing:
        # <out>/users/<name>/train.jsonl
        stdlib_text.build(Path(missing[0]).parents[2])


def read_back(config: TrainConfig) -> World:
    """The world as the next program would find it: base, tokenizer and catalog from disk. Raises PefxError."""
    if config.base is None or config.catalog is None:
        raise PefxError(f"{CONFIG}: the demo needs 'base' and 'catalog'")
    base, digest = load_base(config.base, config.precision)
    catalog = Catalog.open(config.catalog, read_only=True)
    revisions = [catalog.get(user.name) for user in config.users]
    bank = empty_bank(base.config, bank_spec([revision.spec for revision in revisions]), len(revisions))
    for slot, revision in enumerate(revisions):
        require_base(revision, digest)
        bank = load_adapter(bank, slot, catalog.load(revision), revision.spec)
    layout = step_layout(config, len(revisions), shards=1)
    return World(config, base, bank, Tokenizer.load(config.base), layout)


def judge(world: World, console: Console) -> bool:
    """Score every adapter on every user's held-out text in mixed batches; print, draw, and say if the claims hold."""
    users, count = world.config.users, len(world.config.users)
    texts = [
        tuple(
            lesson(example.tokens, example.loss, -1) for example in heldout_set(u, world.config.data, world.tokenizer)
        )
        for u in users
    ]
    exams = [Exam(text, slot) for text in texts for slot in range(-1, count)]
    nats = np.asarray(nats_per_token(world.base, world.bank, exams, world.layout)).reshape(count, count + 1)
    base, scores = nats[:, 0], nats[:, 1:]
    draw_heatmap(world.names, base, scores, Path(world.config.output) / "heatmap.png")
    own = np.diag(scores)
    others = (scores.sum(axis=1) - own) / max(count - 1, 1)
    best = own <= scores.min(axis=1)
    table = Table("user", title="held-out nats per token", title_justify="left")
    for column in ("base", "own adapter", "others' adapters", "own is best of row"):
        table.add_column(column, justify="right")
    for index, name in enumerate(world.names):
        numbers = (f"{value[index]:.4f}" for value in (base, own, others))
        table.add_row(name, *numbers, "yes" if best[index] else "no")
    console.print(table)
    better = int(np.sum(own < base))
    console.print(f"own adapter beats the base for {better} of {count} users, is the best of its row for {best.sum()}")
    return better == count and int(best.sum()) >= BEST_OF_ROW * count


def serve(world: World) -> tuple[Rows, Rows]:
    """Send every user's requests, and the base's, through `serve.py`'s path. Returns requests and answers, in order."""
    config, out = world.config, Path(world.config.output)
    length = min(config.data.sequence_length, config.data.tokens_per_user)
    requests: Rows = []
    for number in range(PER_USER):
        for index, user in enumerate([*config.users, None]):
            # The base reads the users' texts too.
            examples = heldout_set(user or config.users[number], config.data, world.tokenizer)
            tokens = max(examples[number:] or examples, key=lambda example: len(example.tokens)).tokens
            prompt = tokens[: length - SAMPLED + 1].tolist()
            row = {"id": f"{number}-{index}", "policy": user.name if user else None, "prompt": prompt}
            row |= {"max_tokens": SAMPLED, "temperature": 0.8, "top_p": 0.95, "seed": 97 * number + index}
            requests.append(row | {"logprobs": True, "prompt_logprobs": True})
    source, answers = out / "requests.jsonl", out / "answers.jsonl"
    text = "".join(json.dumps(request) + "\n" for request in requests)
    if not source.exists() or source.read_text(encoding="utf-8") != text:
        source.write_text(text, encoding="utf-8")
    rank = max((user.adapter or config.adapter).rank for user in config.users)
    served = ServeConfig(
        name="demo",
        base=str(config.base),
        catalog=config.catalog,
        slots=max(len(config.users) // 2, 1),  # fewer than there are users, so that adapters come and go
        sequences=8,
        page_size=config.page_size,
        max_rank=rank,
        precision=config.precision,
    )
    if serve_file(served, source, answers):
        raise PefxError(f"{answers}: serving was interrupted; start the demo again")
    rows = {row["id"]: row for row in map(json.loads, answers.read_text(encoding="utf-8").splitlines())}
    return requests, [rows[request["id"]] for request in requests]


def compare(world: World, requests: Rows, answers: Rows, console: Console) -> bool:
    """Run prompts and answers through the training step and compare log-probabilities with the served ones, in bits."""
    slots = {name: slot for slot, name in enumerate(world.names)}
    lessons: list[Lesson] = []
    served: list[np.ndarray] = []
    for request, answer in zip(requests, answers, strict=True):
        if "error" in answer:
            raise PefxError(f"request {request['id']} was not served: {answer['error']['message']}")
        tokens = [*request["prompt"], *answer["tokens"]]
        lessons.append(lesson(tokens, np.ones(len(tokens)), slots.get(str(request["policy"]), -1)))
        served.append(np.asarray([*answer["prompt_logprobs"][1:], *answer["logprobs"]], np.float32))
    total = mismatches = 0
    bank, opt = world.bank, init_opt(world.bank)
    width = world.layout.shares
    if width < len(world.names):
        raise PefxError(f"{CONFIG}: the demo needs data.users_per_step of at least {len(world.names)}, got {width}")
    hyper = hyper_without_update(width)
    for first in range(0, len(lessons), width):
        # Any share may hold any adapter's rows: a step of all slots, none of them updated.
        part = lessons[first : first + width]
        batch = device_batch(lay_out([[[item] for item in part]], world.layout))
        bank, opt, metrics = steps.train_step(world.base, bank, opt, batch, hyper)
        trained = np.asarray(metrics.logprobs)
        for share, item in enumerate(part):
            own = trained[share * world.layout.share :][: len(item.tokens)]
            total += len(own)
            mismatches += int(np.sum(own.view(np.uint32) != served[first + share].view(np.uint32)))
    console.print(f"train vs serve: {mismatches} mismatches of {total:,} tokens")
    if total < LEAST_TOKENS:
        console.print(f"too few tokens were compared: {total} of at least {LEAST_TOKENS}")
    return mismatches == 0 and total >= LEAST_TOKENS


def hyper_without_update(width: int) -> steps.TrainHyper:
    """Hyper-parameters of a step in which slots 0..width-1 are active and none is updated."""
    ones = np.ones(width, np.float32)
    fields: dict[str, Any] = dict.fromkeys(("learning_rate", "weight_decay", "clip", "beta1", "beta2", "epsilon"), ones)
    fields |= {"slots": np.arange(width, dtype=np.int32), "apply": np.zeros(width, np.bool_)}
    return steps.TrainHyper(**fields)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PefxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
