"""Tasks from files: prompts are lines of JSONL, rewards are a function that the config names."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pefx.config import TaskConfig
from pefx.data.jsonl import JsonlFile, index_jsonl, json_type, parse_object, text_field
from pefx.errors import PefxError
from pefx.rl.reward_function import RewardFunction
from pefx.rl.rewards import check_reward
from pefx.rl.tasks.generated import split_of
from pefx.rl.tasks.protocol import Problem, Split, Turn

PROMPT, ANSWER, CONTEXT = "prompt", "answer", "context"


class JsonlTask:
    """Lines `{"prompt": ..., any other fields}`. The others are what the reward function gets as `fields`.

    An `answer` is a right completion, a `context` what could be shown before the prompt. Lines with the same prompt are
    on the same side; with files of their own, no prompt may be in both. Every line is checked, and the function
    imported (in another process): raises PefxError.
    """

    def __init__(self, config: TaskConfig):
        assert config.path is not None
        assert config.reward is not None
        self.config = config
        self.trusted = False
        self.turns = 1
        self._files: dict[Split, JsonlFile] = {}
        self._lines: dict[Split, list[int]] = {}
        self._orders: dict[Split, tuple[int, list[int]]] = {}
        self._read(config.path, config.heldout_path)
        check_reward(config.reward, config.timeout)

    def problem(self, index: int, split: Split) -> Problem:
        """Every line once, in an order of the seed, then every line once in another order, and so on."""
        lines = self._lines[split]
        epoch, place = divmod(index, len(lines))
        if self._orders.get(split, (None,))[0] != epoch:
            order = list(lines)
            Random(f"jsonl {self.config.seed} {split} {epoch}").shuffle(order)
            self._orders[split] = epoch, order
        file, line = self._files[split], self._orders[split][1][place]
        return problem_of(file.read(line), file.where(line))

    def step(self, problem: Problem, texts: Sequence[str]) -> Turn:
        """The function's reward, in this process and without bounds: `Rewards` asks a worker instead."""
        assert self.config.reward is not None
        return RewardFunction(self.config.reward).step(problem, texts)

    def answer(self, problem: Problem, texts: Sequence[str] = ()) -> str | None:
        return problem.data.get(ANSWER)

    def _read(self, path: str, heldout_path: str | None) -> None:
        """Finds the lines of both splits."""
        sides: tuple[tuple[str, Split], ...] = ((path, "train"),)
        if heldout_path is not None:
            sides = (*sides, (heldout_path, "heldout"))
        seen: dict[str, tuple[Split, str]] = {}
        for file_path, side in sides:
            file = index_jsonl(file_path)
            for line in range(len(file)):
                where = file.where(line)
                problem = problem_of(file.read(line), where)
                split = split_of(problem) if heldout_path is None else side
                other, first = seen.setdefault(problem.name, (split, where))
                if other != split:
                    raise PefxError(f"{where}: this prompt is also in {first}; what is held out is not trained on")
                self._files[split] = file
                self._lines.setdefault(split, []).append(line)
        for split in ("train", "heldout"):
            if split not in self._lines:
                raise PefxError(
                    f"{path}: too few lines, none is in the split {split!r} (an eighth is held out, by hash); "
                    "give more, or task.heldout_path"
                )


def problem_of(line: bytes, where: str) -> Problem:
    """The problem of a line; raises PefxError starting with `where`."""
    row: Mapping[str, Any] = parse_object(line, where)
    prompt = text_field(dict(row), PROMPT, where)
    if not prompt:
        raise PefxError(f"{where}: field 'prompt' is empty")
    if ANSWER in row and not isinstance(row[ANSWER], str):
        raise PefxError(f"{where}: field 'answer' must be a string (a right completion), got {json_type(row[ANSWER])}")
    context = row.get(CONTEXT, "")
    if not isinstance(context, str):
        raise PefxError(f"{where}: field 'context' must be a string (a text to show), got {json_type(context)}")
    return Problem(prompt, {name: value for name, value in row.items() if name != PROMPT}, context=context)
