"""pefx.store.host_cache: bounded by bytes, least recently used leave first, the pinned stay; against a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.errors import PefxError
from pefx.store.host_cache import HostCache, weights_bytes

KEYS = "abcdef"
ACTIONS = st.lists(st.tuples(st.sampled_from(["put", "pin", "unpin", "touch"]), st.sampled_from(KEYS)), max_size=60)


def cache(limit: int) -> HostCache[str, int]:
    """Values are their own weight."""
    return HostCache(limit, weigh=lambda value: value)


@given(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=6, max_size=6), ACTIONS)
def test_any_course_agrees_with_the_model(limit: int, sizes: list[int], actions: list[tuple[str, str]]) -> None:
    held, size = cache(limit), dict(zip(KEYS, sizes, strict=True))
    used: dict[str, int] = {}  # key: when it was last used; the model of what is here
    pins = dict.fromkeys(KEYS, 0)
    hits = misses = evictions = 0
    for now, (action, key) in enumerate(actions):
        if action == "put" and key not in used:
            if size[key] > limit:
                with pytest.raises(PefxError, match=r"the host cache holds at most .* \(host_cache_mb\)") as caught:
                    held.put(key, size[key])
                assert caught.value.kind == "too_large"
                continue
            if sum(size[k] for k in used if pins[k]) + size[key] > limit:
                assert held.put(key, size[key]) is None
                continue
            gone = []
            while sum(size[k] for k in used) + size[key] > limit:
                gone.append(min((k for k in used if not pins[k]), key=used.__getitem__))
                del used[gone[-1]]
            assert held.put(key, size[key]) == gone
            evictions += len(gone)
            used[key] = now
        elif action == "pin":
            assert held.pin(key) == (size[key] if key in used else None)
            hits, misses = hits + (key in used), misses + (key not in used)
            pins[key] += key in used
        elif action == "unpin" and pins[key]:
            held.unpin(key)
            pins[key] -= 1
            used[key] = now
        elif action == "touch":
            held.touch(key)
            used |= {key: now} if key in used and not pins[key] else {}
        assert (held.hits, held.misses, held.evictions) == (hits, misses, evictions)
        assert held.bytes == sum(size[k] for k in used) <= limit
        assert held.pinned_bytes == sum(size[k] for k in used if pins[k])
        idle = sorted((k for k in used if not pins[k]), key=used.__getitem__)
        assert held.keys()[: len(idle)] == idle
        assert sorted(held.keys()) == sorted(used)
        assert (len(held), [held.pins(k) for k in KEYS]) == (len(used), list(pins.values()))
        assert [key in held for key in KEYS] == [key in used for key in KEYS]


def test_a_value_may_come_pinned() -> None:
    held = cache(4)
    assert held.put("a", 3, pins=2) == []
    assert held.put("b", 2) is None
    held.unpin("a")
    assert held.put("b", 2) is None
    held.unpin("a")
    assert held.put("b", 2) == ["a"]


def test_misuse_raises() -> None:
    held = cache(4)
    held.put("a", 1)
    with pytest.raises(ValueError, match="already"):
        held.put("a", 1)
    with pytest.raises(KeyError):
        held.unpin("a")
    with pytest.raises(ValueError, match="at least one byte"):
        cache(0)


def test_weights_weigh_what_their_arrays_do() -> None:
    weights = {"q": {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}, "v": {"a": np.zeros(1)}}
    assert weights_bytes(weights) == 24 + 8 + 8
