"""Whose turn it is where nobody waits for a single answer: all that need an adapter come together, so it loads once.

Higher priorities come first. Within one, those that ran before, the last put back first; then those whose adapter is in
a slot (the bare base needs none); then adapter by adapter, in the order in which they first had one waiting.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Waiting(Protocol):
    """What is asked of a sequence; `revision` is None for the bare base."""

    @property
    def priority(self) -> int: ...

    @property
    def revision(self) -> Any: ...


Group = dict[Any, None]  # sequences, in the order they came


class LocalQueue:
    """Waiting sequences, by adapter. Changing it costs the same however many wait."""

    def __init__(self):
        self._groups: dict[int, dict[Any, Group]] = {}  # by priority, then by content hash (None: the base)
        self._back: dict[int, Group] = {}  # by priority: those that ran
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, sequence: Waiting) -> None:
        """One more waits."""
        groups = self._groups.setdefault(sequence.priority, {})
        groups.setdefault(_adapter(sequence), {})[sequence] = None
        self._count += 1

    def push_back(self, sequence: Waiting) -> None:
        """One that ran waits again, before all others of its priority."""
        self._back.setdefault(sequence.priority, {})[sequence] = None
        self._count += 1

    def remove(self, sequence: Waiting) -> None:
        """It waits no more. KeyError if it did not."""
        priority, adapter = sequence.priority, _adapter(sequence)
        back = self._back.get(priority, {})
        if sequence in back:
            del back[sequence]
            if not back:
                del self._back[priority]
        else:
            groups = self._groups[priority]
            del groups[adapter][sequence]
            if not groups[adapter]:
                del groups[adapter]
            if not groups:
                del self._groups[priority]
        self._count -= 1

    def turns(self, resident: Callable[[Any], bool], crowded: Callable[[], bool]) -> Iterator[Any]:
        """The waiting in the order of their turns. `resident` says whether a revision (not None) is in a slot.

        What has been given may `enter` or be removed before the next is asked for. Where it is `crowded` they end.
        """
        for priority in sorted({*self._groups, *self._back}, reverse=True):
            back = reversed(list(self._back.get(priority, ())))
            groups = list(self._groups.get(priority, {}).values())
            here = [_needs_no_load(next(iter(group)), resident) for group in groups]
            ordered = [list(group) for wanted in (True, False) for group, found in zip(groups, here) if found is wanted]
            for sequence in chain(back, *ordered):
                if crowded():
                    return
                yield sequence

    def newcomer(self, sequence: Waiting) -> bool:
        """All are alike."""
        return False

    def kept(self, places: int) -> int:
        """No place waits for who may come."""
        return 0

    def order(self, running: list[Any]) -> list[Any]:
        """Prompts are computed in the order in which they entered."""
        return running

    def enter(self, sequence: Waiting, tokens: int) -> None:
        """It has a place now."""
        self.remove(sequence)

    def charge(self, sequence: Waiting, tokens: int) -> None:
        """Nothing: no one's service is counted."""

    def leave(self, sequence: Waiting) -> None:
        """Nothing: no one's places are counted."""


def _adapter(sequence: Waiting) -> Any:
    return None if sequence.revision is None else sequence.revision.content_hash


def _needs_no_load(sequence: Any, resident: Callable[[Any], bool]) -> bool:
    return sequence.revision is None or resident(sequence.revision)
