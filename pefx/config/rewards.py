"""What policies are rewarded for, how they draw answers and how they learn from them; standard library only."""

from dataclasses import dataclass
from typing import Literal

from pefx.config.shapes import Weights

# Which experts training takes: as routers say now, as the trainer's said of the answers (R2), or the sampler's (R3).
Replay = Literal["live", "trainer", "sampler"]


@dataclass(frozen=True)
class TaskConfig:
    """Problems that a policy is rewarded for: a task of `pefx.rl.tasks.builtin` by its `name`, or "jsonl".

    `level` makes problems harder, `seed` draws them, `options` are (name, value) pairs of the task. A wrong answer gets
    `partial` times how close it is (None: as the task has it). After `turns` completions a problem is over.
    With "jsonl" the prompts are lines of `path`; held out are those of `heldout_path`, or without one an eighth, by
    hash. They are rewarded by `reward`, "module:function".
    A reward that takes more than `timeout` seconds or allocates more than `memory_mb` MiB is an error: the
    answer leaves its group.
    """

    name: str
    level: int = 1
    seed: int = 0
    options: tuple[tuple[str, int | str], ...] = ()
    partial: float | None = None
    path: str | None = None
    heldout_path: str | None = None
    reward: str | None = None
    turns: int = 8
    timeout: float = 5.0
    memory_mb: int = 512


@dataclass(frozen=True)
class RolloutConfig:
    """What a policy draws: for each update `group` answers to each of `prompts` problems, of up to `max_tokens` tokens
    a turn. Answers for `updates` updates are drawn at once, and learned from one after another.

    With `context` it sees the problems' contexts while it draws, and neither when it learns nor when it is evaluated:
    what is learned is what it says when it knows, and the loss must be one that asks for no policy of its own.
    It is measured by an answer, at `heldout_temperature`, to each of `heldout` problems that are never trained on.
    """

    prompts: int = 8
    group: int = 8
    max_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0
    updates: int = 1
    heldout: int = 64
    heldout_temperature: float = 0.0
    context: bool = False


@dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of rewarded answers, a row of `pefx.losses.rows` (None: its own numbers), and what goes with it.

    `kl` and `entropy` weigh the divergence from the base and the entropy. `correction`, a row of
    `pefx.rl.corrections` with bounds of its own where they are None, weighs tokens by how far the trainer is from the
    sampler. Tokens without recorded routes, where `replay` needs them, are routed live, or with `drop_unrouted` not
    learned from. `drop_even` leaves out prompts whose answers are all rewarded alike, and draws others, `redraw` times
    at most. Answers longer than the last `overlong` tokens of the room they have lose reward.
    """

    name: str = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    beta: float | None = None
    kl: float = 0.0
    entropy: float = 0.0
    correction: str = "none"
    correction_low: float | None = None
    correction_high: float | None = None
    replay: Replay = "live"
    drop_unrouted: bool = False
    drop_even: bool = False
    redraw: int = 3
    overlong: int = 0


@dataclass(frozen=True)
class SamplerConfig:
    """How answers are drawn while policies train: `sequences` at once, `step_tokens` tokens of prompts in a step.

    For studies of what goes wrong the sampler may have the base in other `weights`, or policies as they were `stale`
    drawings ago (after a restart, as they are: older ones are not kept on disk).
    """

    sequences: int = 64
    step_tokens: int = 256
    weights: Weights | None = None
    stale: int = 0
