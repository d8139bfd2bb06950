"""Runs that learn from rewards, end to end on a tiny base: on policy to the bit, alone as among others, resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    PolicyLossConfig,
    RolloutConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
)
from pefx.data.tokenizer import Tokenizer
from pefx.errors import PefxError
from pefx.huggingface import save_base
from pefx.loading import load_base
from pefx.model import Base
from pefx.rl import curriculum
from pefx.rl.records import read_rollouts
from pefx.rl.run import learn
from pefx.store.catalog import Catalog
from pefx.training.adapters import AdapterTraining
from pefx.training.heldout import Exam, scored
from pefx.training.journal import METRICS, read_rows
from pefx.training.planner import Layout, lesson

TO_THE_BIT = True

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
    hidden=32, layers=2, heads=2, kv_heads=1, head_size=16, dense_hidden=32, expert_hidden=16, experts=4,
    experts_per_token=2, context=64,
)  # fmt: skip
ADAPTER = AdapterSpec(rank=4, targets=("q_proj", "experts.up_proj"))


def user(world: Path, name: str, reward: str = "vowels", **fields: Any) -> UserConfig:
    path = str(world / "prompts.jsonl")
    return UserConfig(name, task=TaskConfig("jsonl", path=path, reward=f"tests.rl_rewards:{reward}"), **fields)


def config(world: Path, output: str, users: tuple[UserConfig, ...], **fields: Any) -> TrainConfig:
    return replace(
        TrainConfig(
            name="run",
            output=str(world / output),
            base=str(world / "base"),
            users=users,
            catalog=str(world / f"{output}.catalog"),
            adapter=ADAPTER,
            data=DataConfig(sequence_length=32, tokens_per_user=256, users_per_step=4),
            checkpoint=CheckpointConfig(every=2),
            rollout=RolloutConfig(prompts=2, group=4, max_tokens=8, heldout=4),
            sampler=SamplerConfig(sequences=8, step_tokens=32),
            steps=3,
            mesh=MeshConfig(data=1),
        ),
        **fields,
    )


@pytest.fixture(name="world", scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny base, prompts, and a user's text."""
    world = tmp_path_factory.mktemp("world")
    save_base(Base(MODEL, nnx.Rngs(3)), world / "base", ROOT / "assets" / "base" / "tokenizer.json")
    lines = [json.dumps({"prompt": f"def f{i}(x):", "context": f"# it returns x * {i}\n"}) for i in range(40)]
    (world / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    texts = [json.dumps({"text": f"x = {i} + {i * i}"}) for i in range(20)]
    (world / "text.jsonl").write_text("\n".join(texts) + "\n")
    return world


def users_of(world: Path) -> tuple[UserConfig, ...]:
    """Four policies: two losses over two rewards, one whose answers serve two updates, and one that reads text."""
    return (
        user(world, "ann"),
        user(world, "bob", reward="width", policy_loss=PolicyLossConfig("gspo", kl=0.01, entropy=0.001)),
        user(world, "cat", rollout=RolloutConfig(prompts=2, group=2, max_tokens=6, updates=2, heldout=0)),
        UserConfig("dan", train=str(world / "text.jsonl")),
    )


def hashes(world: Path, output: str) -> dict[str, str]:
    catalog = Catalog.open(world / f"{output}.catalog", read_only=True)
    return {name: catalog.get(name).content_hash for name in catalog.policies()}


@pytest.fixture(name="together", scope="module")
def run_together(world: Path) -> dict[str, str]:
    assert learn(config(world, "together", users_of(world))) == 0
    return hashes(world, "together")


def trained(world: Path, output: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(world / output / METRICS) if row["kind"] == "train"]


def test_first_updates_are_on_policy_to_the_bit(world: Path, together: dict[str, str]) -> None:
    rows = [row for row in trained(world, "together") if row["name"] != "dan"]
    assert len(rows) == 9
    for row in rows:
        fresh = row["name"] != "cat" or row["step"] % 2 == 1
        assert (row["gap_max"] == 0 and row["kl_k1"] == 0 and row["kl_k3"] == 0) == fresh, row
        assert 0 <= row["reward"] <= 1
        assert row["gradient_norm"] > 0
        assert row["entropy"] > 0
    assert {row["name"] for row in read_rows(world / "together" / METRICS) if row["kind"] == "heldout"} == {
        "ann",
        "bob",
    }


def test_what_was_drawn_is_kept(world: Path, together: dict[str, str]) -> None:
    folder = world / "together" / "rollouts"
    assert sorted(path.name for path in (folder / "ann").iterdir()) == [f"{n:06d}.parquet" for n in range(3)]
    assert sorted(path.name for path in (folder / "cat").iterdir()) == ["000000.parquet", "000002.parquet"]
    rollouts = read_rollouts(folder / "bob" / "000001.parquet")
    assert [(one.group, one.sample, one.revision) for one in rollouts] == [(g, s, 1) for g in (2, 3) for s in range(4)]
    for one in rollouts:
        assert one.reward == pytest.approx(min(len(one.text) / 64, 1.0))
        assert one.parts == {"long": float(len(one.text) > 32)}
        assert np.isfinite(one.logprobs).all()


@pytest.mark.parametrize("place", [1, *(pytest.param(place, marks=pytest.mark.slow) for place in (0, 2, 3))])
def test_alone_as_among_others(world: Path, together: dict[str, str], place: int) -> None:
    own = users_of(world)[place]
    assert learn(config(world, f"alone-{own.name}", (own,))) == 0
    assert hashes(world, f"alone-{own.name}") == {own.name: together[own.name]}


def test_in_time_slices_they_end_in_the_same_bits(world: Path, together: dict[str, str]) -> None:
    """Two slots for four policies, a slice of one step: also between two updates from one drawing."""
    assert learn(config(world, "sliced", users_of(world), slots=2, slice_steps=1)) == 0
    assert hashes(world, "sliced") == together
    metrics = [
        Catalog.open(world / f"{name}.catalog", read_only=True).get("ann").metrics for name in ("sliced", "together")
    ]
    assert metrics[0] == metrics[1]


def context_users(world: Path) -> tuple[UserConfig, ...]:
    """Who is scored with what it is not shown, who says what it was shown, and who knows nothing of contexts."""
    shown = RolloutConfig(prompts=2, group=2, max_tokens=6, heldout=2, context=True)
    return (
        user(world, "eve", policy_loss=PolicyLossConfig("context")),
        user(world, "fay", rollout=shown, policy_loss=PolicyLossConfig("cross_entropy")),
        user(world, "ann"),
    )


def test_contexts_score_or_are_shown_and_are_never_learned(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, Any, Any]] = []
    plain = curriculum.pieces_of

    def noted(plan: Any, groups: Any, passes: Any, *more: Any) -> Any:
        pieces = plain(plan, groups, passes, *more)
        found.append((plan.session.policy, [passes.get(id(one)) for group in groups for one in group], pieces))
        return pieces

    monkeypatch.setattr(curriculum, "pieces_of", noted)
    users = context_users(world)
    assert learn(config(world, "context", users, steps=2)) == 0
    rows = [row for row in trained(world, "context") if row["name"] == "eve"]
    assert all(row["gap_max"] == 0 and row["gradient_norm"] > 0 for row in rows)
    folder = world / "context" / "rollouts"
    said = {name: read_rollouts(folder / name / "000000.parquet")[0].transcript[0] for name in ("eve", "fay", "ann")}
    assert said["fay"].endswith(said["eve"])
    assert said["fay"].startswith("# it returns")
    assert said["ann"] == said["eve"]
    for name, passes, pieces in found:
        lessons = [item for piece in pieces for item in piece.lessons]
        if name == "fay":
            texts = [Tokenizer.load(world / "base").decode(item.tokens.tolist()) for item in lessons]
            assert all(text.startswith("def f") for text in texts)
        if name == "eve":
            size, drawn = config(world, "context", users).rollout.group, [item.weights > 0 for item in lessons]
            given = [
                np.sum((own.context[1:] - item.terms.old_logprobs)[where], dtype=np.float64)
                for own, item, where in zip(passes, lessons, drawn, strict=True)
            ]
            groups = np.reshape(given, (-1, size))
            assert np.abs(groups).max() > 0
            expected = (groups - groups.mean(axis=1, keepdims=True)) / (groups.std(axis=1, keepdims=True) + 1e-6)
            for item, where, advantage in zip(lessons, drawn, expected.ravel(), strict=True):
                np.testing.assert_allclose(item.terms.advantages[where], advantage, atol=1e-5)
    assert hashes(world, "context")["ann"] != hashes(world, "context")["eve"]


def test_the_context_pass_is_that_of_the_model_itself(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first update a policy is the base: what scores an answer is the base with the context before it."""
    checked: list[int] = []
    plain = curriculum.pieces_of

    def noted(plan: Any, groups: Any, passes: Any, *more: Any) -> Any:
        base = load_base(str(world / "base"), "float32")[0]
        tokenizer = Tokenizer.load(world / "base")
        for one in (one for group in groups for one in group if id(one) in passes):
            context = tokenizer.encode(plan.task.problem(one.group, "train").context)
            tokens = np.asarray([*context, *one.tokens.tolist()], np.int32)
            item = lesson(tokens, np.ones(len(tokens)), -1)
            (alone,) = scored(base, None, [Exam((item,), -1)], Layout(1, 64, 64, 32))
            expected = np.where(one.sampled, alone.logprobs[len(context) - 1 :], 0)
            np.testing.assert_allclose(np.where(one.sampled, passes[id(one)].context, 0), expected, atol=1e-5)
            checked.append(int(one.sampled.sum()))
        return plain(plan, groups, passes, *more)

    monkeypatch.setattr(curriculum, "pieces_of", noted)
    assert learn(config(world, "scored", context_users(world)[:1], steps=1)) == 0
    assert sum(checked) > 0


def test_a_context_that_is_not_there_or_does_not_fit_is_named(world: Path) -> None:
    task = TaskConfig("sorting")
    shown = RolloutConfig(prompts=2, group=4, context=True)
    for own, told in (
        (UserConfig("gus", task=task, policy_loss=PolicyLossConfig("context")), "task 'sorting' have no context"),
        (UserConfig("gus", task=task, rollout=shown), "task 'sorting' have no context"),
    ):
        with pytest.raises(PefxError, match=told):
            learn(config(world, "none", (own,)))
    assert not (world / "none").exists()
    long = user(world, "eve", policy_loss=PolicyLossConfig("context"))
    narrow = config(world, "narrow", (long,), steps=1, data=DataConfig(sequence_length=16, tokens_per_user=256))
    assert learn(narrow) == 0
    errors = [one.error for one in read_rollouts(world / "narrow" / "rollouts" / "eve" / "000000.parquet")]
    assert any(error and "of them context; data.sequence_length is 16" in error for error in errors)


def test_killed_between_two_updates_of_one_drawing_it_goes_on_to_the_same_bits(
    world: Path, together: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(world, "killed", users_of(world), checkpoint=CheckpointConfig(every=1))
    advance = AdapterTraining.advance

    def dies(self: AdapterTraining, step: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return advance(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTraining, "advance", dies)
        with pytest.raises(KeyboardInterrupt):
            learn(whole)
    assert learn(whole) == 0
    assert hashes(world, "killed") == together


def test_what_went_wrong_is_counted_and_the_others_go_on(world: Path, tmp_path: Path) -> None:
    users = (user(world, "ann", reward="troubled"),)
    assert learn(config(world, "troubled", users, steps=1, catalog=str(tmp_path / "catalog"))) == 0
    (row,) = trained(world, "troubled")
    rollouts = read_rollouts(world / "troubled" / "rollouts" / "ann" / "000000.parquet")
    wrong = [one for one in rollouts if one.error is not None]
    assert 0 < len(wrong) < len(rollouts) == row["draws"]
    assert row["failed"] == len(wrong)
    for one in wrong:
        assert one.error is not None
        assert one.error.startswith(("reward: raised: ", "reward: not_a_number: "))
        assert np.isnan(one.reward)
