"""Reads an experiment: a config file, typed overrides, and what must hold before anything is opened or written.

A config file is Python that binds `config` to a `TrainConfig` or a `ServeConfig`. Everything wrong with it is a
PefxError that names the file, the field and, where the field is written once, the line.
"""

import ast
import contextlib
import io
import re
import runpy
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
from beartype import BeartypeConf
from beartype.door import is_bearable

from pefx.config import PlanConfig, ServeConfig, SweepConfig, TrainConfig
from pefx.errors import PefxError
from pefx.rules import broken_rules
from pefx.sweeping.cells import population

Config = TypeVar("Config", TrainConfig, ServeConfig, PlanConfig, SweepConfig)
NUMBERS_WIDEN = BeartypeConf(is_pep484_tower=True)  # an int may stand where a float is asked for


def load_config(path: str, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """The config of the file at `path`, with command-line `overrides` such as `["--data.seed", "1"]` applied.

    Relative paths inside it stay as written: they are read from the current directory, which is the checkout root in
    all that ships. Raises PefxError for an unreadable file, a wrong type, an unknown field, a value out of range.
    """
    config = apply_overrides(path, read_file(path, kind), overrides)
    for field, problem in broken_rules(config):
        place = f"{path} with {' '.join(overrides)}: {field}" if overrides else where(path, field)
        raise PefxError(f"{place}: {problem}")
    return config


def read_any(path: str, overrides: Sequence[str] = ()) -> TrainConfig | ServeConfig | PlanConfig:
    """The checked config of a file of any kind, of a sweep the run that it is; raises PefxError like `load_config`."""
    found = run_file(path).get("config")
    if isinstance(found, PlanConfig):
        return load_config(path, PlanConfig, overrides)
    if isinstance(found, ServeConfig):
        return load_config(path, ServeConfig, overrides)
    if isinstance(found, SweepConfig):
        return population(load_config(path, SweepConfig, overrides))
    return load_config(path, TrainConfig, overrides)


def read_file(path: str, kind: type[Config]) -> Config:
    """Runs the file and checks the type of every field; raises PefxError."""
    values = run_file(path)
    if "config" not in values:
        raise PefxError(f"{path}: binds no `config`; a config file ends with config = {kind.__name__}(...)")
    config = values["config"]
    if not isinstance(config, kind):
        raise PefxError(f"{path}: config is a {type(config).__name__}; this command needs a {kind.__name__}")
    for field, problem in wrong_types(config):
        raise PefxError(f"{where(path, field)}: {problem}")
    return config


def run_file(path: str) -> dict[str, Any]:
    """The names the file binds; raises PefxError with the line at which it failed."""
    if not Path(path).is_file():
        raise PefxError(f"{path}: no such config file")
    try:
        return runpy.run_path(path)
    except PefxError:
        raise
    except SyntaxError as error:
        raise PefxError(f"{error.filename or path}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # a config file is a program: whatever it raises is told, with its line
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = f":{lines[-1]}" if lines else ""
        raise PefxError(f"{path}{line}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def wrong_types(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted field, what is wrong) for each field of dataclass `value` that does not hold what it declares."""
    hints = typing.get_type_hints(type(value))
    for field in fields(value):
        item, hint, name = getattr(value, field.name), hints[field.name], path + field.name
        # To Python a bool is an int; to a person it is not.
        stray_bool = isinstance(item, bool) and bool not in (hint, *typing.get_args(hint))
        if stray_bool or not is_bearable(item, hint, conf=NUMBERS_WIDEN):
            yield name, f"expected {tidy(hint)}, got {item!r} ({type(item).__name__})"
        elif is_dataclass(item):
            yield from wrong_types(item, name + ".")
        elif isinstance(item, tuple):
            for index, element in enumerate(item):
                if is_dataclass(element):
                    yield from wrong_types(element, f"{name}.{index}.")


def tidy(hint: Any) -> str:
    """A type hint as a person would write it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"pefx\.config\.\w+\.|typing\.", "", str(hint)).replace("NoneType", "None")


def apply_overrides(path: str, config: Config, overrides: Sequence[str]) -> Config:
    """`config` with strict, typed command-line overrides; raises PefxError for unknown, repeated or mistyped ones."""
    flags = [word.split("=")[0].replace("_", "-") for word in overrides if word.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise PefxError(f"{path}: override {flag} is given {flags.count(flag)} times; give it once")
    return parse(type(config), overrides, prog=path, default=config, config=(tyro.conf.AvoidSubcommands,))


def parse(kind: Any, words: Sequence[str], prog: str, **options: Any) -> Any:
    """`tyro.cli` whose complaint is a PefxError of one line that starts with `prog`; `--help` prints and exits 0."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=prog, args=list(words), **options)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise PefxError(f"{prog}: {one_line(complaint.getvalue())}") from stop


def one_line(box: str) -> str:
    """The message inside the box that tyro draws, in Unicode or in ASCII, with the first name it suggests."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        row = line.strip("│ ")
        if row and not row.strip("─-╭╮╰╯"):
            parts.append([])  # a rule
        elif not row.startswith("╭"):
            parts[-1] += row.split()
    if len(parts) > 1 and not box.startswith("╭"):
        del parts[0]  # without Unicode the title stands above the first rule
    hints = [part[3] for part in parts[1:] if part[:3] == ["Perhaps", "you", "meant:"]]
    return " ".join(parts[0]) + (f" (perhaps you meant {hints[0]}?)" if hints else "")


def where(path: str, field: str) -> str:
    """`file:line: field`, or `file: field` when the file does not write a keyword of that name exactly once."""
    name = [part for part in field.split(".") if not part.isdigit()][-1]
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    keywords = [node.value.lineno for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == name]
    return f"{path}:{keywords[0]}: {field}" if len(keywords) == 1 else f"{path}: {field}"
