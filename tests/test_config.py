"""Configs are values: frozen, hashable, compared by content, documented; they need the standard library only."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from pefx import config
from pefx.config import AdapterSpec, DataConfig, ServeConfig, TrainConfig, UserConfig

KINDS = [kind for _, kind in inspect.getmembers(config, dataclasses.is_dataclass)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_config_is_frozen_and_documented(kind):
    assert kind.__dataclass_params__.frozen
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")


def test_equal_content_is_equal_and_hashes_alike():
    one, two = (TrainConfig("n", "o", users=(UserConfig("ann", "a", adapter=AdapterSpec(rank=4)),)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != dataclasses.replace(two, data=DataConfig(seed=1))


def test_a_field_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServeConfig("n", "b").slots = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_it_imports_nothing_beyond_the_standard_library():
    root = str(Path(config.__file__).parents[2])
    code = f"import sys; sys.path.append({root!r}); import pefx.config"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
