"""pefx.serving.pages: a page has one owner, nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pefx.errors import PefxError
from pefx.serving.pages import PageAllocator


def test_all_or_nothing():
    pages = PageAllocator(3)
    first = pages.take(2)
    assert first is not None
    assert pages.take(2) is None
    assert pages.free == 1
    pages.give_back(first)
    pages.check_empty()
    assert sorted(pages.take(3) or ()) == [0, 1, 2]


def test_double_free_and_strangers_are_found():
    pages = PageAllocator(4)
    taken = pages.take(2)
    assert taken is not None
    pages.give_back(taken)
    with pytest.raises(RuntimeError, match="not taken"):
        pages.give_back(taken)
    with pytest.raises(RuntimeError, match="not taken"):
        pages.give_back((99,))
    again = pages.take(1)
    assert again is not None
    with pytest.raises(RuntimeError, match="twice"):
        pages.give_back(again * 2)
    assert pages.free == 3  # a refused return changes nothing


def test_leak_is_found():
    pages = PageAllocator(2)
    pages.take(1)
    with pytest.raises(RuntimeError, match="1 pages leaked"):
        pages.check_empty()


@given(st.integers(max_value=0))
def test_no_pages_is_no_pool(total: int):
    with pytest.raises(PefxError, match="at least one page"):
        PageAllocator(total)


class Owners(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pages = PageAllocator(7)
        self.owned: list[tuple[int, ...]] = []

    @rule(count=st.integers(0, 9))
    def take(self, count: int):
        before = self.pages.free
        taken = self.pages.take(count)
        assert (taken is None) == (count > before)
        if taken is not None:
            assert len(taken) == count
            self.owned.append(taken)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject):
        self.pages.give_back(self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1))))

    @invariant()
    def one_owner_each(self):
        out = [page for pages in self.owned for page in pages]
        assert len(set(out)) == len(out)
        assert self.pages.free + len(out) == 7


TestOwners = Owners.TestCase
