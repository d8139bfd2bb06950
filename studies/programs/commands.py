"""Programs of the checkout, run as a user runs them, with configs that a study makes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pefx.config import ServeConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = '''"""Made by a study."""

from pefx.config import *

config = {}
'''


def environment() -> dict[str, str]:
    """The environment of such a program: the packages of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*words: object) -> None:
    """A program of the checkout; ends this one where it fails."""
    command = [sys.executable, *map(str, words)]
    code = subprocess.run(command, cwd=ROOT, env=environment()).returncode
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}")


def write_config(path: Path, config: TrainConfig | ServeConfig) -> Path:
    """A config file of `config`; returns its path."""
    path.write_text(CONFIG.format(config))
    return path


def answer(config: ServeConfig, requests: Iterable[dict[str, Any]], folder: Path, name: str) -> Path:
    """Answers requests by `serve.py`, from the start; returns the file of answers, in the order of the requests."""
    source, answers = folder / f"{name}.jsonl", folder / f"{name}-answers.jsonl"
    with source.open("w") as file:
        for row in requests:
            file.write(json.dumps(row) + "\n")
    for old in folder.glob(f"{answers.name}*"):
        old.unlink()
    run("serve.py", write_config(folder / f"{name}.py", config), "--requests", source, "--out", answers)
    return answers
