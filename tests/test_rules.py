"""Each rule of a config, broken alone, is told with its field; a config that breaks none is told nothing."""

from dataclasses import replace
from typing import Any

import pytest

from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    HalvingConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    Scaling,
    ServeConfig,
    SweepConfig,
    TaskConfig,
    TrainConfig,
    UserConfig,
    YarnConfig,
)
from pefx.rules import broken_rules

USERS = (UserConfig("ann", "a.jsonl"), UserConfig("bob", "b.jsonl"))
TRAIN = TrainConfig("n", "o", base="b", users=USERS)
MODEL = ModelConfig()
PRETRAIN = TrainConfig("n", "o", pretrain=PretrainConfig(MODEL, "t", "a", "h", "e"))
SERVE = ServeConfig("n", "b")
REMEMBERS = replace(SERVE, others=(AdapterSpec("delta_mem", 8, targets=("memory",)),))
SWEEP = SweepConfig(
    "n",
    TrainConfig("n", "o", base="b", users=(UserConfig("ann", "a.jsonl", "h.jsonl"),)),
    (AdapterSpec(), AdapterSpec(rank=4, init="minor")),
    (1e-3,),
    Scaling("by_rank", "unchanged"),
    ranks=(1, 4),
)


@pytest.mark.parametrize("config", [TRAIN, PRETRAIN, SERVE, REMEMBERS, SWEEP])
def test_a_sound_config_breaks_nothing(config):
    assert list(broken_rules(config)) == []


def user(**changes: Any) -> dict[str, Any]:
    return {"users": (USERS[0], replace(USERS[1], **changes))}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"steps": 0}, "steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"evaluate_every": -1}, "evaluate_every"),
        ({"seed": -1}, "seed"),
        ({"users": ()}, "users"),
        ({"base_weights": "int8"}, "remat"),
        ({"base": None}, "base"),
        ({"data": DataConfig(tokens_per_user=100, sequence_length=64)}, "data.tokens_per_user"),
        ({"data": DataConfig(sequence_length=512)}, "data.sequence_length"),
        ({"data": DataConfig(users_per_step=0)}, "data.users_per_step"),
        ({"data": DataConfig(heldout_tokens=0)}, "data.heldout_tokens"),
        ({"checkpoint": CheckpointConfig(every=-1)}, "checkpoint.every"),
        ({"checkpoint": CheckpointConfig(keep=0)}, "checkpoint.keep"),
        ({"adapter": AdapterSpec(rank=0)}, "adapter.rank"),
        ({"adapter": AdapterSpec(alpha=-1.0)}, "adapter.alpha"),
        ({"adapter": AdapterSpec(targets=())}, "adapter.targets"),
        ({"adapter": AdapterSpec(targets=("q_proj", "q_proj"))}, "adapter.targets"),
        ({"adapter": AdapterSpec(targets=("qproj",))}, "adapter.targets"),
        ({"optimizer": OptimizerConfig(learning_rate=0.0)}, "optimizer.learning_rate"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "optimizer.learning_rate"),
        ({"optimizer": OptimizerConfig(clip=float("inf"))}, "optimizer.clip"),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, "optimizer.beta2"),
        ({"optimizer": OptimizerConfig(final_fraction=1.1)}, "optimizer.final_fraction"),
        ({"optimizer": OptimizerConfig(weight_decay=-0.1)}, "optimizer.weight_decay"),
        (user(name="ann"), "users.1.name"),
        (user(train=""), "users.1.train"),
        (user(heldout=""), "users.1.heldout"),
        (user(steps=0), "users.1.steps"),
        (user(seed=-1), "users.1.seed"),
        (user(adapter=AdapterSpec(rank=-1)), "users.1.adapter.rank"),
        (
            user(adapter=AdapterSpec(method="lora_ga"), train=None, task=TaskConfig("sorting"))
            | {"data": DataConfig(sequence_length=64, tokens_per_user=8192)},
            "users.1.task",
        ),
        ({"adapter": AdapterSpec(method="lora_ga"), "base_weights": "fp8", "remat": "full"}, "base_weights"),
        (user(optimizer=OptimizerConfig(epsilon=0.0)), "users.1.optimizer.epsilon"),
    ],
)
def test_a_training_rule(changes, field):
    assert [name for name, _ in broken_rules(replace(TRAIN, **changes))] == [field]


LATENT = {"kv_rank": 8, "nope_head_size": 6, "rope_head_size": 4, "value_head_size": 10, "kv_heads": 0, "head_size": 0}
DENSE = {"experts": 0, "experts_per_token": 0, "expert_hidden": 0, "dense_layers": tuple(range(MODEL.layers))}


@pytest.mark.parametrize("changes", [LATENT, DENSE, {"expert_groups": 4, "groups_per_token": 2}], ids=range(3))
def test_a_base_of_another_kind_breaks_nothing(changes):
    pretrain = PretrainConfig(replace(MODEL, **changes), "t", "a", "h", "e")
    assert list(broken_rules(replace(PRETRAIN, pretrain=pretrain))) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"heads": 5}, "heads"),
        ({"head_size": 31}, "head_size"),
        ({"experts_per_token": 17}, "experts_per_token"),
        ({"dense_layers": (6,)}, "dense_layers"),
        ({"layers": 0, "dense_layers": ()}, "layers"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rotary_fraction": 0.0}, "rotary_fraction"),
        ({"rotary_fraction": 0.1}, "rotary_fraction"),
        ({"value_head_size": 8}, "value_head_size"),
        ({"expert_groups": 3}, "expert_groups"),
        ({"expert_groups": 16, "groups_per_token": 8}, "expert_groups"),
        ({"expert_groups": 4, "groups_per_token": 5}, "groups_per_token"),
        ({"expert_groups": 8}, "experts_per_token"),
        ({"gate_scale": 0.0}, "gate_scale"),
        ({"shared_experts": -1}, "shared_experts"),
        ({"experts": 0, "experts_per_token": 0, "dense_layers": (0, 1, 2, 3, 4, 5, 6)}, "dense_layers"),
        ({"yarn": YarnConfig(0.0, 128)}, "yarn.factor"),
        ({"yarn": YarnConfig(4.0, 0)}, "yarn.original_context"),
        (LATENT | {"rope_head_size": 5}, "rope_head_size"),
        (LATENT | {"value_head_size": 0}, "value_head_size"),
        (LATENT | {"query_rank": -1}, "query_rank"),
        (LATENT | {"attention_bias": True}, "attention_bias"),
    ],
)
def test_a_rule_of_a_base(changes, field):
    pretrain = PretrainConfig(replace(MODEL, **changes), "t", "a", "h", "e")
    assert [name for name, _ in broken_rules(replace(PRETRAIN, pretrain=pretrain))] == [f"pretrain.model.{field}"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"users": USERS}, "users"),
        ({"base": "b"}, "base"),
        ({"base_weights": "fp8"}, "base_weights"),
        ({"page_size": 48}, "pretrain.batch_tokens"),
        ({"data": DataConfig(sequence_length=2000)}, "data.sequence_length"),
    ],
)
def test_a_pretraining_rule(changes, field):
    assert [name for name, _ in broken_rules(replace(PRETRAIN, **changes))] == [field]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"base": ""}, "base"),
        ({"catalog": ""}, "catalog"),
        ({"slots": 0}, "slots"),
        ({"host_cache_mb": 0}, "host_cache_mb"),
        ({"sequences": 0}, "sequences"),
        ({"step_tokens": 0}, "step_tokens"),
        ({"pages": -1}, "pages"),
        ({"page_size": 0}, "page_size"),
        ({"max_rank": 0}, "max_rank"),
        ({"targets": ("q_proj", "nose")}, "targets"),
        ({"targets": ("q_proj", "memory")}, "targets"),
        ({"targets": ("q_proj",), "others": (AdapterSpec("vera", targets=("v_proj",)),)}, "others.0.targets"),
    ],
)
def test_a_serving_rule(changes, field):
    broken = list(broken_rules(replace(SERVE, **changes)))
    assert [name for name, _ in broken] == [field]
    assert broken[0][1]


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"name": ""}, "name", "must not be empty"),
        ({"seeds": 0}, "seeds", "must be above 0"),
        ({"adapters": ()}, "adapters", "is empty"),
        ({"learning_rates": ()}, "learning_rates", "is empty"),
        ({"ranks": (4, 0)}, "ranks", "must be 1 or more, got 0"),
        ({"ranks": (4, 4)}, "adapters", "2 cells are called lora-r4-a8-lr0.001"),
        ({"adapters": (AdapterSpec(rank=0),)}, "adapters.0.rank", "must be above 0"),
        ({"adapters": (AdapterSpec(rank=2), AdapterSpec(rank=4))}, "adapters", "differ in rank only"),
        ({"scaling": Scaling("by_rank", "mu_a")}, "scaling", "says nothing of 'lora' with alpha 'by_rank'"),
        ({"run": replace(SWEEP.run, users=USERS)}, "run.users", "must be one user"),
        ({"rungs": (0,)}, "rungs", "must grow from above 0 to below steps (40)"),
        ({"rungs": (20, 10)}, "rungs", "got (20, 10)"),
        ({"rungs": (40,)}, "rungs", "got (40,)"),
        ({"rungs": (10,), "keep": 1.0}, "keep", "must be above 0 and below 1, got 1.0"),
        ({"run": replace(SWEEP.run, halving=HalvingConfig((1,), 0.5, 1))}, "run.halving", "is of the sweep"),
        (
            {"rungs": (10,), "run": replace(SWEEP.run, users=(UserConfig("ann", "a.jsonl"),))},
            "rungs",
            "need something held out to decide by; 'lora-r1-a2-lr0.001/0' has nothing",
        ),
        ({"run": replace(SWEEP.run, steps=0)}, "run.steps", "must be above 0"),
    ],
)
def test_a_sweep_rule(changes, field, told):
    assert any(name == field and told in why for name, why in broken_rules(replace(SWEEP, **changes)))
