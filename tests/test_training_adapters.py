"""What a run asks of its config and says in its revisions; training itself is in test_training_run."""

from dataclasses import replace

import pytest

from kernels.paged_attention.api import query_tile
from pefx.config import DataConfig, ModelConfig, TrainConfig, UserConfig
from pefx.errors import PefxError
from pefx.training.adapters import AdapterTraining, evaluation_of, step_layout
from pefx.training.sessions import make_sessions

CONFIG = TrainConfig(name="run", output="out", users=(UserConfig("ann", "a.jsonl"), UserConfig("bob", "b.jsonl")))


def test_the_layout_has_a_share_for_each_user_of_a_step() -> None:
    layout = step_layout(replace(CONFIG, data=DataConfig(users_per_step=8)), 2, ModelConfig())
    assert (layout.shares, layout.share, layout.tokens, layout.sequences, layout.blocks) == (2, 256, 512, 16, 8)
    layout = step_layout(replace(CONFIG, data=DataConfig(users_per_step=3)), 5, ModelConfig())
    assert layout.shares == 3


def test_a_page_that_does_not_hold_whole_tiles_is_refused() -> None:
    tile = query_tile(ModelConfig().heads, ModelConfig().kv_heads)
    with pytest.raises(PefxError, match=f"'page_size' is 12; this base needs a multiple of {tile}"):
        step_layout(replace(CONFIG, page_size=12), 2, ModelConfig())


def test_a_revision_records_the_loss_before_and_after() -> None:
    ann, bob = make_sessions(CONFIG)
    evaluations = {0: {"ann": 3.0}, 20: {"ann": 2.5}, 40: {"ann": 2.0}}
    assert evaluation_of(ann, evaluations, 40) == {"heldout_nats_per_token": {"before": 3.0, "after": 2.0}}
    assert evaluation_of(bob, evaluations, 40) == {}


def test_a_run_needs_a_base() -> None:
    with pytest.raises(PefxError, match="'base' is not set"):
        AdapterTraining(CONFIG)
