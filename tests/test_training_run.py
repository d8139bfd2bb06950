"""`train(config)` end to end on a tiny random base: killed in every way, it ends in the same revisions."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from pefx.config import AdapterSpec, CheckpointConfig, DataConfig, MeshConfig, ModelConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.model import Base
from pefx.store.catalog import Catalog
from pefx.store.sessions import find_session
from pefx.training import run
from pefx.training.adapters import AdapterTraining
from pefx.training.journal import METRICS, read_rows
from pefx.training.parking import PLACE
from pefx.training.run import train
from pefx.training.tenure import Tenure

TO_THE_BIT = True

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
    hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, dense_hidden=32, expert_hidden=16, experts=4,
    experts_per_token=2, context=64,
)  # fmt: skip
# Few targets: a step of all of them takes three times as long to compile.
LARGE = AdapterSpec(rank=8, targets=("q_proj", "down_proj", "experts.up_proj", "experts.down_proj"))
SMALL = AdapterSpec(rank=4, targets=("q_proj", "experts.up_proj"))
CHILD = """
import json, sys
from pefx.config import *
from pefx.training.run import train
from pefx.training.tenure import Tenure
c = json.loads(sys.argv[1])
adapter = lambda u: AdapterSpec(**u["adapter"]) if u["adapter"] else None
users = tuple(UserConfig(**{**u, "adapter": adapter(u)}) for u in c.pop("users"))
c["adapter"] = adapter(c)
parts = {"data": DataConfig, "checkpoint": CheckpointConfig, "mesh": MeshConfig, "optimizer": OptimizerConfig}
parts |= {"rollout": RolloutConfig, "policy_loss": PolicyLossConfig, "sampler": SamplerConfig}
c.update({name: kind(**c[name]) for name, kind in parts.items()})
sys.exit(train(TrainConfig(users=users, **c)))
"""


def write_lines(path: Path, name: str, count: int) -> str:
    path.write_text(
        "".join(json.dumps({"text": f"def {name}_{i}(x): return x + {i * i}"}) + "\n" for i in range(count))
    )
    return str(path)


@pytest.fixture(name="world", scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny base and three users' data."""
    world = tmp_path_factory.mktemp("world")
    save_base(Base(MODEL, nnx.Rngs(3)), world / "base", ROOT / "assets" / "base" / "tokenizer.json")
    for name in ("ann", "bob", "cat"):
        write_lines(world / f"{name}.jsonl", name, 40)
        write_lines(world / f"{name}_heldout.jsonl", f"{name}_new", 6)
    return world


def config(world: Path, output: str, **fields: Any) -> TrainConfig:
    """Three users, two a step, ranks and targets mixed, gradients accumulated over two micro-batches."""
    users = [UserConfig(n, str(world / f"{n}.jsonl"), str(world / f"{n}_heldout.jsonl")) for n in ("ann", "bob", "cat")]
    return replace(
        TrainConfig(
            name="run",
            output=str(world / output),
            base=str(world / "base"),
            users=(users[0], replace(users[1], adapter=SMALL, steps=8), users[2]),
            catalog=str(world / f"{output}.catalog"),
            adapter=LARGE,
            data=DataConfig(sequence_length=32, tokens_per_user=64, users_per_step=2, heldout_tokens=64),
            checkpoint=CheckpointConfig(every=4),
            steps=12,
            accumulate=2,
            evaluate_every=10,
            mesh=MeshConfig(data=1),
        ),
        **fields,
    )


def hashes(world: Path, output: str) -> dict[str, str]:
    catalog = Catalog.open(world / f"{output}.catalog", read_only=True)
    return {name: catalog.get(name).content_hash for name in catalog.policies()}


@pytest.fixture(name="whole", scope="module")
def whole_run(world: Path) -> dict[str, str]:
    """The content hashes of a run undisturbed until it had committed; then it died, and was started again."""

    def dies(self: Tenure, step: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tenure, "end", dies)
        with pytest.raises(KeyboardInterrupt):
            train(config(world, "whole"))
    catalog = Catalog.open(world / "whole.catalog", read_only=True)
    for name in hashes(world, "whole"):
        session = find_session(catalog, catalog.policy(name))
        assert session is not None
        assert (session.state, session.number, session.run) == ("checkpointed", 1, str(world / "whole"))
    assert train(config(world, "whole")) == 0
    return hashes(world, "whole")


def test_a_run_commits_every_user_once_with_its_provenance(world: Path, whole: dict[str, str]) -> None:
    assert list(whole) == ["ann", "bob", "cat"]
    assert len(set(whole.values())) == 3
    catalog = Catalog.open(world / "whole.catalog", read_only=True)
    for name in whole:
        (revision,) = catalog.log(name)
        session = find_session(catalog, catalog.policy(name))
        assert session is not None
        assert (session.state, session.number, revision.session) == ("closed", 1, 1)
        assert Path(str(session.checkpoint)).is_dir()
        scores = revision.metrics["heldout_nats_per_token"]
        assert scores["after"] < scores["before"]
        assert revision.step == (8 if name == "bob" else 12)
        assert revision.base.startswith("sha256:")
        assert revision.data_fingerprint.startswith("sha256:")
        assert str(world) not in json.dumps(revision.config)
    assert catalog.get("bob").spec.rank == 4
    rows = read_rows(world / "whole" / METRICS)
    assert sum(row["kind"] == "train" and row["name"] == "bob" for row in rows) == 16
    assert (world / "whole" / "curves.png").exists()


def test_a_finished_run_does_nothing(world: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (world / "whole").rglob("*"))
    assert train(config(world, "whole")) == 0
    assert "already finished" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in (world / "whole").rglob("*")) == before
    with pytest.raises(PefxError, match=r"'optimizer\.learning_rate' was"):
        train(replace(config(world, "whole"), optimizer=replace(TrainConfig("", "").optimizer, learning_rate=1.0)))


def test_alone_or_mixed_a_user_ends_in_the_same_revision(world: Path, whole: dict[str, str]) -> None:
    here = config(world, "alone")
    assert train(replace(here, users=here.users[2:], data=replace(here.data, users_per_step=1))) == 0
    assert hashes(world, "alone") == {"cat": whole["cat"]}


def test_in_time_slices_users_end_in_the_same_revisions(world: Path, whole: dict[str, str]) -> None:
    sliced = config(world, "sliced", slots=1, slice_steps=3)
    kept: list[str] = []

    def cut(self: Tenure, step: int) -> None:
        """Ends the run in the middle of a slice, with gradients half summed."""
        if step == 20:
            kept.extend(Catalog.open(str(sliced.catalog), read_only=True).space.keys("parked/", "parked0"))
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tenure, "checkpointed", cut)
        with pytest.raises(KeyboardInterrupt):
            train(sliced)
    assert {key.split("@")[0] for key in kept} == {"parked/ann", "parked/bob", "parked/cat"}
    with pytest.MonkeyPatch.context() as patch:  # committed, and killed before it had said so
        patch.setattr(run, "mark_finished", lambda *_: cut(Tenure(None, ""), 20))
        with pytest.raises(KeyboardInterrupt):
            train(sliced)
    assert hashes(world, "sliced") == whole
    assert train(sliced) == 0
    assert hashes(world, "sliced") == whole
    catalog = Catalog.open(str(sliced.catalog), read_only=True)
    assert catalog.space.keys("parked/", "parked0") == []
    before = catalog.get("cat").metrics["heldout_nats_per_token"]
    resident = Catalog.open(world / "whole.catalog", read_only=True).get("cat").metrics["heldout_nats_per_token"]
    assert before == resident


@pytest.mark.slow
def test_time_slices_may_change_with_the_shards(world: Path, whole: dict[str, str]) -> None:
    """A slot on each of two shards; then one for everybody on one shard; then two on one."""
    here = config(world, "reslotted", slots=2, slice_steps=2, mesh=MeshConfig(data=2))
    for stop, fields in (
        (6, {}),
        (16, {"slots": 0, "mesh": MeshConfig(data=1)}),
        (None, {"slots": 2, "slice_steps": 5, "mesh": MeshConfig(data=1)}),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if stop is None:
                assert train(replace(here, **fields)) == 0
                continue
            advance = AdapterTraining.advance

            def dies(self: AdapterTraining, step: int, stop: int = stop, advance: Any = advance) -> Any:
                if step == stop:
                    raise KeyboardInterrupt
                return advance(self, step)

            patch.setattr(AdapterTraining, "advance", dies)
            with pytest.raises(KeyboardInterrupt):
                train(replace(here, **fields))
    assert hashes(world, "reslotted") == whole


def test_without_a_catalog_sessions_wait_in_the_output_directory(world: Path) -> None:
    here = config(world, "waiting", slots=1, slice_steps=2, steps=2, accumulate=1, evaluate_every=0, catalog=None)
    assert train(replace(here, users=here.users[::2])) == 0
    assert (world / "waiting" / PLACE).is_dir()


@pytest.mark.slow
def test_sigkill_and_sigterm_in_mid_run_change_nothing(world: Path, whole: dict[str, str]) -> None:
    here = config(world, "killed")
    assert _child(here, signal.SIGKILL, after=4) == -signal.SIGKILL
    assert _child(here, signal.SIGTERM, after=12) == 143
    assert not (world / "killed" / "finished.json").exists()
    # The rest on another number of shards: sessions move, their numbers do not.
    assert _child(replace(here, mesh=MeshConfig(data=2))) == 0
    assert hashes(world, "killed") == whole
    rows = read_rows(world / "killed" / METRICS)
    steps = [row["step"] for row in rows if row["kind"] == "rate"]
    assert steps == list(range(1, len(steps) + 1))
    updates = Counter(row["name"] for row in rows if row["kind"] == "train")
    assert updates == {"ann": 24, "bob": 16, "cat": 24}


def _child(here: TrainConfig, kill: signal.Signals | None = None, after: int = 0) -> int:
    """Run `here` in a process of its own; once the checkpoint of step `after` is there, send it `kill`."""
    fields = {name: getattr(here, name) for name in ("name", "output", "base", "catalog", "steps", "accumulate")}
    fields |= {"evaluate_every": here.evaluate_every}
    fields |= {name: vars(getattr(here, name)) for name in ("data", "checkpoint", "mesh", "optimizer")}
    fields["adapter"] = vars(here.adapter)
    fields["users"] = [{**vars(user), "adapter": user.adapter and vars(user.adapter)} for user in here.users]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(here.output).parent / "cache")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    command = [sys.executable, "-c", CHILD, json.dumps(fields)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 300
        while kill and child.poll() is None and time.monotonic() < deadline:
            if (Path(here.output) / "checkpoints" / str(after)).is_dir():
                child.send_signal(kill)
                break
            time.sleep(0.005)
        return child.wait(timeout=300)


def test_bad_input_is_named_and_nothing_is_written(world: Path) -> None:
    good = config(world, "bad")
    (world / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (world / "empty.jsonl").write_text("")
    for change, message in [
        ({"base": None}, "'base' is not set"),
        ({"base": str(world / "nowhere")}, "nowhere: no such directory"),
        ({"users": ()}, "'users' is empty"),
        ({"users": (UserConfig("ann", str(world / "broken.jsonl")),)}, r"broken\.jsonl: line 2"),
        ({"users": (UserConfig("ann", str(world / "empty.jsonl")),)}, "file is empty"),
        ({"users": (UserConfig("a b", str(world / "ann.jsonl")),)}, "policy name"),
        ({"data": replace(good.data, tokens_per_user=65)}, "must be a multiple of page_size"),
        ({"data": replace(good.data, sequence_length=128)}, "128"),
        ({"adapter": AdapterSpec(targets=("nonsense",))}, "nonsense"),
    ]:
        with pytest.raises(PefxError, match=message):
            train(replace(good, **change))
    assert not (world / "bad").exists()
    assert not (world / "bad.catalog").exists()


def test_changed_data_or_base_is_refused(world: Path) -> None:
    here = config(world, "moved", steps=2, accumulate=1)
    data = str(here.users[2].train)
    assert train(replace(here, users=here.users[2:])) == 0
    (world / "moved" / "finished.json").unlink()
    lines = Path(data).read_text()
    Path(data).write_text(lines + '{"text": "one more line"}\n')
    try:
        with pytest.raises(PefxError, match="data of user 'cat' changed"):
            train(replace(here, users=here.users[2:]))
    finally:
        Path(data).write_text(lines)
