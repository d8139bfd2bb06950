"""pefx.checks: fields that break a rule are named, with what they are."""

from pefx.checks import not_negative, positive, texts
from pefx.config import AdapterSpec, OptimizerConfig, UserConfig


def test_numbers_are_named_with_what_is_wrong():
    assert list(positive(AdapterSpec(rank=0), "adapter.", "rank", "alpha")) == [
        ("adapter.rank", "must be above 0, got 0")
    ]
    broken = OptimizerConfig(learning_rate=float("nan"), clip=-1.0)
    assert [name for name, _ in not_negative(broken, "", "learning_rate", "clip", "beta1")] == ["learning_rate", "clip"]


def test_texts_must_say_something():
    assert list(texts(UserConfig(""), "users.0.", "name")) == [("users.0.name", "must not be empty")]
