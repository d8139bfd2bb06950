"""What a run asks of its config and says in its revisions; training itself is in test_training_run."""

from dataclasses import replace

import pytest

from pefx.config import DataConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.training.adapters import AdapterTraining, metrics_of, step_layout
from pefx.training.sessions import make_sessions

CONFIG = TrainConfig(name="run", output="out", users=(UserConfig("ann", "a.jsonl"), UserConfig("bob", "b.jsonl")))


def test_the_layout_has_a_share_for_each_user_of_a_step() -> None:
    layout = step_layout(replace(CONFIG, data=DataConfig(users_per_step=8)), 2, 1)
    assert (layout.shares, layout.share, layout.tokens) == (2, 256, 512)
    assert (layout.sizes.sequences, layout.sizes.blocks, layout.sizes.tiles) == (16, 8, 16)
    assert step_layout(replace(CONFIG, data=DataConfig(users_per_step=3)), 5, 1).shares == 3
    halved = step_layout(replace(CONFIG, data=DataConfig(users_per_step=3)), 5, 2)
    assert (halved.shares, halved.shards) == (2, 2)


def test_a_page_that_does_not_hold_whole_tiles_is_refused() -> None:
    with pytest.raises(PefxError, match="page_size is 48; it must be a multiple of 32"):
        step_layout(replace(CONFIG, page_size=48), 2, 1)


def test_a_revision_records_the_loss_before_and_after() -> None:
    ann, bob = make_sessions(CONFIG)
    evaluations = {0: {"ann": 3.0}, 20: {"ann": 2.5}, 40: {"ann": 2.0}}
    assert metrics_of(ann, evaluations) == {"heldout_nats_per_token": {"before": 3.0, "after": 2.0}}
    assert metrics_of(bob, evaluations) == {}


def test_a_run_needs_a_base() -> None:
    with pytest.raises(PefxError, match="'base' is not set"):
        AdapterTraining(CONFIG)
