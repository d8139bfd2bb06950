"""A config file: read, typed, overridden; every complaint names the file, the field and what would be right."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pefx.config import DataConfig, PlanConfig, ServeConfig, TrainConfig
from pefx.errors import PefxError
from pefx.settings import load_config, one_line, read_any, tidy, wrong_types

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
TRAIN = """from pefx.config import *
config = TrainConfig(
    name="n", output="o", base="b",
    users=(UserConfig("ann", "a.jsonl"), UserConfig("bob", "b.jsonl")),
    {extra}
)
"""


def write(folder: Path, extra: str = "", text: str = TRAIN) -> str:
    path = folder / "experiment.py"
    path.write_text(text.replace("{extra}", extra))
    return str(path)


def complaint(path: str, *overrides: str, kind: Any = TrainConfig) -> str:
    with pytest.raises(PefxError) as error:
        load_config(path, kind, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(path)
    return message.removeprefix(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_sound(path):
    assert isinstance(read_any(str(path)), TrainConfig | ServeConfig | PlanConfig)


def test_overrides_change_what_they_name_and_nothing_else(tmp_path):
    path = write(tmp_path)
    plain = load_config(path, TrainConfig)
    changed = load_config(path, TrainConfig, ["--steps", "7", "--data.seed=3", "--users.1.name", "eve"])
    users = (plain.users[0], replace(plain.users[1], name="eve"))
    assert changed == replace(plain, steps=7, data=replace(plain.data, seed=3), users=users)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--stepz", "3"], "Unrecognized options: --stepz, 3 (perhaps you meant --steps?)"),
        (["--steps", "many"], "--steps"),
        (["--data.seed", "1.5"], "--data.seed"),
        (["--precision", "fp8"], "Expected one of ('float32', 'bfloat16')"),
        (["--steps"], "--steps"),
        (["stray"], "stray"),
        (["--users.2.name", "eve"], "--users.2.name"),
        (["--steps", "3", "--steps", "4"], "--steps is given 2 times"),
        (["--page_size", "8", "--page-size=16"], "--page-size is given 2 times"),
        (["--steps", "0"], "steps: must be above 0, got 0"),
        (["--users.1.name", "ann"], "users.1.name: 'ann' is also the name of users.0"),
        (["--adapter.targets", "q_proj", "z_proj"], "adapter.targets: unknown site 'z_proj'"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path, overrides, words):
    assert words in complaint(write(tmp_path), *overrides)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("stepz=3", ":2: TypeError: TrainConfig.__init__() got an unexpected keyword argument 'stepz'"),
        ('steps="many"', ":5: steps: expected int, got 'many' (str)"),
        ("steps=1.5", ":5: steps: expected int, got 1.5 (float)"),
        ("steps=True", ":5: steps: expected int, got True (bool)"),
        ("data=DataConfig(seed=None)", ":5: data.seed: expected int, got None (NoneType)"),
        ('precision="fp8"', ":5: precision: expected Literal['float32', 'bfloat16'], got 'fp8' (str)"),
        ("catalog=3", ":5: catalog: expected str | None, got 3 (int)"),
        ("adapter=AdapterSpec(targets=['q_proj'])", ":5: adapter.targets: expected tuple[str, ...], got ['q_proj']"),
        ("optimizer=OptimizerConfig(clip=True)", ":5: optimizer.clip: expected float, got True (bool)"),
        ("page_size=48", ": data.tokens_per_user: must be a multiple of page_size (48), got 256"),
        ("steps=1/0", ":5: ZeroDivisionError: division by zero"),
        ("steps=(", ":"),
    ],
)
def test_a_wrong_config_file_is_one_line_with_its_place(tmp_path, extra, words):
    assert complaint(write(tmp_path, extra)).startswith(words)


def test_a_wrong_field_of_a_user_is_named(tmp_path):
    text = TRAIN.replace('"b.jsonl"', "7")
    assert complaint(write(tmp_path, text=text)).startswith(": users.1.train: expected str | None, got 7 (int)")


def test_a_whole_number_may_stand_for_a_float(tmp_path):
    assert load_config(write(tmp_path, "optimizer=OptimizerConfig(clip=2)"), TrainConfig).optimizer.clip == 2


def test_a_file_without_a_config_or_with_another_kind(tmp_path):
    assert complaint(write(tmp_path, text="x = 1\n")) == (
        ": binds no `config`; a config file ends with config = TrainConfig(...)"
    )
    assert "needs a ServeConfig" in complaint(write(tmp_path), kind=ServeConfig)
    assert complaint(str(tmp_path / "absent.py")) == ": no such config file"


def test_the_line_is_left_out_where_a_field_is_written_twice(tmp_path):
    extra = 'steps=4, data=DataConfig(seed="x"), seed=1'
    assert complaint(write(tmp_path, extra)).startswith(": data.seed: expected int")


def test_help_lists_the_fields_and_exits_0(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(write(tmp_path), TrainConfig, ["--help"])
    assert stop.value.code == 0
    assert "--data.tokens-per-user" in capsys.readouterr().out


def test_wrong_types_of_a_sound_config_are_none():
    assert list(wrong_types(TrainConfig("n", "o", data=DataConfig()))) == []


def test_hints_read_as_a_person_writes_them():
    assert [tidy(int), tidy(str | None), tidy(tuple[str, ...])] == ["int", "str | None", "tuple[str, ...]"]


BOXES = {
    "unicode": "╭─ Invalid ─╮\n│ one - two │\n│ three.    │\n│ ───────── │\n│ For help  │\n╰───────────╯\n",
    "ascii": " Invalid       \n ------------- \n  one - two    \n  three.       \n  -------------\n  For help     \n\n",
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_a_wrapped_box_becomes_one_line(box):
    assert one_line(box) == "one - two three."


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_complaints_are_the_same_in_every_terminal(tmp_path, encoding):
    code = f"from pefx.settings import *; load_config({write(tmp_path)!r}, TrainConfig, ['--stepz', '3'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, text=True
    )
    assert done.stderr.endswith(": Unrecognized options: --stepz, 3 (perhaps you meant --steps?)\n")
