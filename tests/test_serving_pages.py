"""pefx.serving.pages: who takes a page has it alone, what is published is found, nothing is lost."""

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
        pages.give_back([99])
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
        self.owned: list[list[int]] = []

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


def test_what_is_published_is_found_until_room_is_needed():
    pages = PageAllocator(3)
    taken = pages.take(2)
    assert taken is not None
    node = pages.publish(taken[0], "root", [1, 2])
    pages.publish(taken[1], node, [3, 4])
    pages.give_back(taken)
    assert (pages.free, pages.kept) == (3, 2)
    assert pages.find("other", [1, 2], 2)[0] == []
    assert pages.find("root", [1, 3], 2)[0] == []
    found, _ = pages.find("root", [1, 2, 3, 4, 5], 2)
    assert found == taken
    assert (pages.free, pages.kept) == (1, 0)
    again, _ = pages.find("root", [1, 2, 9], 2)  # held twice now
    pages.give_back(found)
    assert pages.free == 2
    pages.give_back(again)
    assert pages.take(2) is not None  # what followed went first
    assert pages.find("root", [1, 2, 3, 4], 2)[0] == taken[:1]


def test_of_two_with_the_same_content_the_first_is_found():
    pages = PageAllocator(4)
    first, second = pages.take(1), pages.take(1)
    assert first is not None
    assert second is not None
    assert pages.publish(first[0], "root", [1]) == pages.publish(second[0], "root", [1])
    assert pages.find("root", [1], 1)[0] == first
    pages.give_back(second)
    assert pages.kept == 0  # it has no name


def test_what_is_withdrawn_is_found_no_more():
    pages = PageAllocator(2)
    taken = pages.take(1)
    assert taken is not None
    pages.publish(taken[0], "root", [1])
    pages.withdraw(taken)
    assert pages.find("root", [1], 1)[0] == []
    pages.give_back(taken)
    assert pages.kept == 0


def test_who_keeps_nothing_finds_nothing():
    pages = PageAllocator(2, keep=False)
    taken = pages.take(1)
    assert taken is not None
    assert pages.publish(taken[0], "root", [1]) == "root"
    assert pages.find("root", [1], 1)[0] == []


def test_only_who_holds_a_page_publishes_it():
    with pytest.raises(RuntimeError, match="nobody who holds it"):
        PageAllocator(2).publish(0, "root", [1])


def test_a_note_is_of_what_is_in_a_page_and_goes_with_it():
    pages = PageAllocator(4)
    first, second = pages.take(1), pages.take(1)
    assert first is not None
    assert second is not None
    pages.publish(first[0], "root", [1])
    assert pages.find("root", [1], 1, noted=True)[0] == []
    with pytest.raises(KeyError):
        pages.note(first[0])
    pages.publish(second[0], "root", [1], "said of the same tokens")
    pages.publish(second[0], "root", [1], "said later")
    found, _ = pages.find("root", [1], 1, noted=True)
    assert found == first
    assert pages.note(found[0]) == "said of the same tokens"
    for held in (first, second, found):
        pages.give_back(held)
    pages.take(4)
    with pytest.raises(KeyError):
        pages.note(first[0])
    assert pages.publish(first[0], "root", [1]) == pages.publish(first[0], "root", [1])
    assert pages.find("root", [1], 1, noted=True)[0] == []
