"""A job of two processes against one: the same revisions and answers; one killed, the other says so; they go on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ServeConfig,
    TrainConfig,
    UserConfig,
)
from pefx.distributed import PEER_LOST, Place, agree, barrier, job, owner, place_of, several
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.model import Base
from pefx.store.catalog import Catalog

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
    hidden=32, layers=1, heads=2, kv_heads=2, head_size=16, dense_hidden=32, expert_hidden=16, experts=4,
    experts_per_token=2, dense_layers=(), context=64,
)  # fmt: skip
ADAPTER = AdapterSpec(rank=4, targets=("q_proj", "experts.up_proj"))
USERS = ("ann", "bob", "cat", "dan")
METHODS = (
    AdapterSpec("dora", 4, 16.0, ("q_proj",)),
    AdapterSpec("vera", 4, 16.0, ("q_proj", "v_proj")),
    AdapterSpec("tiny_lora", 4, 16.0, ("q_proj", "v_proj"), tied=True),
    AdapterSpec("delta_mem", 8, 16.0, ("memory",)),
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        ({"PEFX_COORDINATOR": ""}, None),
        ({"PEFX_DISTRIBUTED": "auto"}, "auto"),
        ({"PEFX_COORDINATOR": "h:1", "PEFX_PROCESSES": "2", "PEFX_PROCESS": "1"}, Place("h:1", 2, 1)),
        ({"PEFX_COORDINATOR": "h:1", "PEFX_PROCESSES": "1", "PEFX_PROCESS": "0"}, None),
    ],
)
def test_the_environment_says_where_a_process_stands(given: dict[str, str], found: Any) -> None:
    assert place_of(given) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"PEFX_DISTRIBUTED": "yes"}, "PEFX_DISTRIBUTED is 'yes'; it may be 'auto'"),
        ({"PEFX_DISTRIBUTED": "auto", "PEFX_PROCESS": "1"}, "PEFX_DISTRIBUTED and PEFX_PROCESS are both set"),
        ({"PEFX_PROCESS": "1"}, "PEFX_PROCESS is set, PEFX_COORDINATOR is not"),
        ({"PEFX_COORDINATOR": "h:1", "PEFX_PROCESSES": "two", "PEFX_PROCESS": "1"}, "PEFX_PROCESSES is 'two', not a"),
        ({"PEFX_COORDINATOR": "h:1", "PEFX_PROCESSES": "2", "PEFX_PROCESS": "2"}, "of 2 processes it is 0 to 1"),
        ({"PEFX_COORDINATOR": "h", "PEFX_PROCESSES": "2", "PEFX_PROCESS": "1"}, "'h', not host:port"),
    ],
)
def test_what_the_environment_lacks_is_named(given: dict[str, str], words: str) -> None:
    with pytest.raises(PefxError, match=words):
        place_of(given)


def test_a_process_on_its_own_waits_for_nobody() -> None:
    with job():
        barrier("here")
        assert (several(), owner(), agree("said")) == (False, True, "said")


class World:
    """A directory with a tiny base, users' data, and the programs that run over it."""

    def __init__(self, path: Path):
        self.path = path
        save_base(Base(MODEL, nnx.Rngs(3)), path / "base", ROOT / "assets" / "base" / "tokenizer.json")
        for name in USERS:
            lines = [json.dumps({"text": f"def {name}_{i}(x): return x + {i * i}"}) + "\n" for i in range(20)]
            (path / f"{name}.jsonl").write_text("".join(lines))
        asked = [
            {
                "id": f"r{i}",
                "policy": (None, *USERS)[i % 5],
                "prompt": f"def f{i}(x):\n    return",
                "max_tokens": 1 + i % 6,
                "temperature": i % 3 / 2,
                "logprobs": True,
            }
            for i in range(24)
        ]
        (path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))

    def training(self, output: str, **fields: Any) -> TrainConfig:
        users = tuple(UserConfig(name, str(self.path / f"{name}.jsonl")) for name in USERS)
        return replace(
            TrainConfig(
                name="run",
                output=str(self.path / output),
                base=str(self.path / "base"),
                users=users,
                catalog=str(self.path / f"{output}.catalog"),
                adapter=ADAPTER,
                data=DataConfig(sequence_length=32, tokens_per_user=64, users_per_step=4),
                checkpoint=CheckpointConfig(every=8),
                steps=24,
                mesh=MeshConfig(2, 2, 2),
            ),
            **fields,
        )

    def serving(self, catalog: str) -> ServeConfig:
        return ServeConfig(
            name="small",
            base=str(self.path / "base"),
            catalog=str(self.path / f"{catalog}.catalog"),
            slots=4,
            sequences=8,
            step_tokens=32,
            page_size=32,
            max_rank=4,
            targets=ADAPTER.targets,
            mesh=MeshConfig(1, 4, 2),  # groups that reach over both processes
        )

    def start(self, config: TrainConfig | ServeConfig, out: str = "", processes: int = 2) -> list[subprocess.Popen]:
        """`config` as a command on processes that have eight devices together."""
        file = self.path / f"{config.name}_{time.monotonic_ns()}.py"
        file.write_text(f"from pefx.config import *\nconfig = {config!r}\n")
        command = [sys.executable, "train.py" if isinstance(config, TrainConfig) else "serve.py", str(file)]
        if isinstance(config, ServeConfig):
            command += ["--requests", str(self.path / "in.jsonl"), "--out", str(self.path / out)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        started = []
        for index in range(processes):
            environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}"}
            environment |= {"PEFX_COORDINATOR": f"localhost:{port}", "PEFX_PROCESSES": str(processes)}
            environment |= {"PEFX_PROCESS": str(index), "JAX_COMPILATION_CACHE_DIR": str(self.path / "cache")}
            with (self.path / f"told{index}").open("w") as told:
                child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=told, stderr=told)
            started.append(child)
        return started

    def run(self, config: TrainConfig | ServeConfig, out: str = "", processes: int = 2) -> list[int]:
        """Exit codes."""
        return self.wait(self.start(config, out, processes))

    @staticmethod
    def wait(started: list[subprocess.Popen], timeout: float = 300) -> list[int]:
        try:
            return [child.wait(timeout) for child in started]
        finally:
            for child in started:
                child.kill()

    def told(self, index: int) -> str:
        return (self.path / f"told{index}").read_text()

    def hashes(self, output: str) -> dict[str, str]:
        catalog = Catalog.open(self.path / f"{output}.catalog", read_only=True)
        return {name: catalog.get(name).content_hash for name in catalog.policies()}


@pytest.fixture(name="world", scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    assert world.run(world.training("one"), processes=1) == [0], world.told(0)
    return world


@pytest.mark.slow
def test_killed_and_stopped_two_processes_end_in_the_bits_of_one(world: World) -> None:
    here = world.training("two")
    children = world.start(here)
    _await(here, 8, children)
    children[1].kill()
    begun = time.monotonic()
    assert World.wait(children) == [PEER_LOST, -signal.SIGKILL], world.told(0)
    assert time.monotonic() - begun < 60
    assert "process 0 of 2 cannot go on, another process is lost" in world.told(0)
    assert "start the same command on all processes again: it goes on" in world.told(0)
    children = world.start(here)
    _await(here, 16, children)
    children[1].terminate()  # one is told, both stop
    assert World.wait(children) == [143, 143], world.told(0) + world.told(1)
    assert "resumed at step 8/24" in world.told(0)
    assert "state saved; the same command goes on from here" in world.told(0)
    assert "resumed" not in world.told(1)  # one speaks for all
    assert world.run(here, processes=1) == [0], world.told(0)
    assert world.hashes("two") == world.hashes("one")
    assert len(set(world.hashes("two").values())) == len(USERS)


@pytest.mark.slow
def test_two_processes_answer_what_one_does(world: World) -> None:
    for out, processes in (("one.out", 1), ("two.out", 2)):
        assert world.run(world.serving("one"), out, processes) == [0] * processes, world.told(0) + world.told(1)
    assert (world.path / "one.out").read_bytes() == (world.path / "two.out").read_bytes()
    assert "answers" not in world.told(1)


@pytest.mark.slow
def test_two_processes_train_and_serve_any_method_to_the_bits_of_one(world: World) -> None:
    """One process has all that adapters share on a base, and every state; of two, each has its part."""
    users = tuple(
        UserConfig(name, str(world.path / f"{name}.jsonl"), adapter=spec)
        for name, spec in zip(USERS, METHODS, strict=True)
    )
    answers = []
    for processes in (1, 2):
        output = f"methods{processes}"
        assert world.run(world.training(output, users=users, steps=8), processes=processes) == [0] * processes, (
            world.told(0) + world.told(1)
        )
        served = replace(world.serving(output), targets=("q_proj", "v_proj"), others=METHODS)
        assert world.run(served, f"{output}.out", processes) == [0] * processes, world.told(0) + world.told(1)
        answers.append((world.path / f"{output}.out").read_bytes())
    assert world.hashes("methods1") == world.hashes("methods2")
    assert answers[0] == answers[1]
    assert b"error" not in answers[0]


ASKING = """
import sys
import numpy as np
from pefx.adapters.directions import Directions
from pefx.adapters.kept_directions import Wanted, kept
from pefx.distributed import job

number, calls = float(sys.argv[1]), []

def make():
    calls.append(1)
    return Directions(*(np.full(shape, number, np.float32) for shape in ((2, 3, 5), (2, 3), (2, 3, 4))))

with job():
    for _ in range(2):
        found = kept(Wanted("sha256:ab", "float32", "q_proj", "first"), 3, make)
        print(len(calls), [(x.shape, float(x.min()), float(x.max())) for x in found])
"""


@pytest.mark.slow
def test_all_processes_have_the_directions_of_one(tmp_path: Path) -> None:
    """Each on a machine with a cache and linear algebra of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(2):
        environment = os.environ | {"PEFX_COORDINATOR": f"localhost:{port}", "PEFX_PROCESSES": "2"}
        environment |= {"PEFX_PROCESS": str(index), "PEFX_CACHE": str(tmp_path / str(index))}
        command = [sys.executable, "-c", ASKING, str(index + 1)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    lines = [child.communicate(timeout=120)[0].splitlines() for child in started]
    told = [[line for line in own if not line.startswith("[Gloo]")] for own in lines]
    assert told[0] == told[1] == [f"1 {[(shape, 1.0, 1.0) for shape in ((2, 3, 5), (2, 3), (2, 3, 4))]}"] * 2
    assert list((tmp_path / "0").rglob("first-3"))
    assert not list((tmp_path / "1").rglob("first-3"))


def _await(here: TrainConfig, step: int, children: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(child.poll() is None for child in children):
        if (Path(here.output) / "checkpoints" / str(step)).is_dir():
            return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of step {step}")
