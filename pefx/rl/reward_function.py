"""Reward functions that a config names: found, called, and what they return checked."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pefx.errors import PefxError
from pefx.rl.tasks.protocol import Problem, Turn

CALLED = "function(prompt, completion, fields)"


class NotANumber(Exception):
    """A reward, or a part of one, that is no finite number."""


class RewardFunction:
    """The judge of a JSONL task. Its module is looked up from the current directory, as `python -m` would.

    Raises PefxError if there is no such module or function, or if it cannot be called with three arguments.
    """

    def __init__(self, name: str):
        self._name = name
        self._function = load(name)

    def step(self, problem: Problem, texts: Sequence[str]) -> Turn:
        """Ends the problem with the function's reward; raises NotANumber, and whatever the function raises."""
        returned = self._function(problem.prompt, texts[-1], dict(problem.data))
        if not isinstance(returned, Mapping):
            return Turn(True, reward=number(returned, f"{self._name} returned"))
        if "reward" not in returned:
            raise NotANumber(f"{self._name} returned a dict without 'reward'")
        numbers = {str(part): number(value, f"{self._name} returned {part}=") for part, value in returned.items()}
        return Turn(True, reward=numbers.pop("reward"), parts=numbers)


def load(name: str) -> Callable[..., Any]:
    """The function that "module:function" names; raises PefxError saying what is wrong with it."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise PefxError(f"task.reward: {name!r} names no function; the form is 'module:function'")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # noqa: BLE001 - importing runs a stranger's code
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PefxError(f"task.reward: module {module_name} cannot be imported ({told})") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        what = "is not callable" if hasattr(module, function_name) else "is not there"
        raise PefxError(f"task.reward: {function_name} {what} in {module_name} ({getattr(module, '__file__', '?')})")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return function
    try:
        signature.bind("", "", {})
    except TypeError as error:
        message = f"{name} takes {signature}, but is called as {CALLED} ({error})"
        raise PefxError(f"task.reward: {message}") from None
    return function


def number(value: object, where: str) -> float:
    """A finite number as a float; raises NotANumber starting with `where`."""
    if not hasattr(type(value), "__float__"):
        raise NotANumber(f"{where} {shown(value)}, which is no number")
    try:
        found = float(value)  # pyright: ignore[reportArgumentType] - it has __float__
    except Exception as error:  # noqa: BLE001 - arrays, tensors and strangers raise what they like
        raise NotANumber(f"{where} {shown(value)}, which is no number ({error})") from None
    if not math.isfinite(found):
        raise NotANumber(f"{where} {found}, which is not finite")
    return found


def shown(value: object) -> str:
    """A value in a message, whatever it is."""
    return f"a {type(value).__name__}" if value is not None else "None"


def checked(turn: Turn) -> Turn:
    """The same turn, its numbers floats; raises NotANumber."""
    parts = {name: number(value, f"part {name}:") for name, value in turn.parts.items()}
    return Turn(bool(turn.done), str(turn.observation), number(turn.reward, "the reward:"), parts)
