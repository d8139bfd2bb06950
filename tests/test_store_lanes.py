"""pefx.store.lanes: a bound, two lanes, and who gives way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefx.store.lanes import Lanes

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["front", "back", "promote", "remove", "pop"]), st.integers(0, 7)), max_size=50
)


@given(st.integers(0, 4), ACTIONS)
def test_any_course_agrees_with_two_lists(limit: int, actions: list[tuple[str, int]]) -> None:
    lanes: Lanes[int] = Lanes(limit)
    front: list[int] = []
    back: list[int] = []
    for action, key in actions:
        if action in ("front", "back"):
            room = len(front) + len(back) < limit or (action == "front" and bool(back))
            assert lanes.room(action == "back") == room
            if not room or key in front + back:
                with pytest.raises(ValueError, match="waits already, or there is no room"):
                    lanes.add(key, action == "back")
                continue
            pushed = back.pop() if len(front) + len(back) == limit else None
            assert lanes.add(key, action == "back") == pushed
            (front if action == "front" else back).append(key)
        elif action == "promote":
            lanes.promote(key)
            if key in back:
                back.remove(key)
                front.append(key)
        elif action == "remove" and key in front + back:
            lanes.remove(key)
            (front if key in front else back).remove(key)
        elif action == "pop" and front + back:
            assert lanes.pop() == (front or back).pop(0)
        assert len(lanes) == len(front) + len(back) <= limit
        assert [key in lanes for key in range(8)] == [key in front + back for key in range(8)]


def test_misuse_raises() -> None:
    lanes: Lanes[str] = Lanes(1)
    with pytest.raises(KeyError):
        lanes.pop()
    with pytest.raises(KeyError):
        lanes.remove("a")
    with pytest.raises(ValueError, match="cannot hold -1"):
        Lanes(-1)
