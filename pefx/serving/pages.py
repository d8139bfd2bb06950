"""Who holds which page of the key and value pool, and which pages can be had again by what is in them.

A page that is full may be published under its tokens and the page before it, down to a root that names the weights: so
a page is found by weights and all tokens from position 0 on, compared one by one, and by nothing less.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from pefx.errors import PefxError

Node = Hashable  # a published page, or the root that names the weights
Key = tuple[Node, tuple[int, ...]]


class PageAllocator:
    """Hands out pages 0..total-1. A page is held by as many sequences as use it, kept for its content, or free.

    What is kept goes when room is needed, what was given back longest ago first. Not `keep`: nothing is published.
    A published page may have a note, which goes with it: the routes of its tokens.
    """

    def __init__(self, total: int, keep: bool = True):
        if total < 1:
            raise PefxError(f"a pool needs at least one page, got {total}")
        self.total, self._keep = total, keep
        # A stack: the page given back last goes out first, while it may still be in a cache.
        self._blank = list(range(total - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # published, held by nobody
        self._published: dict[Key, tuple[int, int]] = {}  # page and node
        self._keys: dict[int, Key] = {}  # by page
        self._notes: dict[int, Any] = {}  # by page
        self._nodes = 0

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        """Pages that nobody holds and that can be had again by their content."""
        return len(self._kept)

    def take(self, count: int) -> list[int] | None:
        """`count` pages to write on, or None (and nothing taken) where fewer are free."""
        if count < 0:
            raise ValueError(f"cannot take {count} pages")
        if count > self.free:
            return None
        while len(self._blank) < count:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
            self._blank.append(page)
        pages = [self._blank.pop() for _ in range(count)]
        self._holders.update(dict.fromkeys(pages, 1))
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """One holder less of each page. Raises RuntimeError for a page that is not held, or is named twice."""
        if len(set(pages)) < len(pages) or not self._holders.keys() >= set(pages):
            stray = sorted(page for page in pages if page not in self._holders)
            raise RuntimeError(f"pages {stray or list(pages)} are given back but not taken, or twice at once")
        for page in reversed(pages):  # what follows goes before what it follows
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._keys:
                self._kept[page] = None
            else:
                self._blank.append(page)

    def find(self, root: Node, tokens: Sequence[int], size: int, noted: bool = False) -> tuple[list[int], Node]:
        """Hold the pages of `size` tokens each that `tokens` begin with under `root`, as many as are there.

        And the node of the last. `noted`: only as far as they have notes.
        """
        pages, node = [], root
        for start in range(0, len(tokens) - size + 1, size):
            found = self._published.get((node, tuple(tokens[start : start + size])))
            if found is None or (noted and found[0] not in self._notes):
                break
            pages.append(found[0])
            node = found[1]
        for page in pages:
            self._kept.pop(page, None)
            self._holders[page] = self._holders.get(page, 0) + 1
        return pages, node

    def publish(self, page: int, before: Node, tokens: Sequence[int], note: Any = None) -> Node:
        """`page` holds `tokens` and follows the node `before`. Returns its node, or that of one that did before.

        That one gets the note (None: there is none) if it had none.
        """
        if page not in self._holders:
            raise RuntimeError(f"page {page} is published by nobody who holds it")
        key = (before, tuple(tokens))
        if self._keep and key not in self._published:
            self._nodes += 1
            self._published[key] = page, self._nodes
            self._keys[page] = key
        if not self._keep:
            return before
        first, node = self._published[key]
        if note is not None:
            self._notes.setdefault(first, note)
        return node

    def note(self, page: int) -> Any:
        """The note of a published page. KeyError where it has none."""
        return self._notes[page]

    def withdraw(self, pages: Sequence[int]) -> None:
        """What is in `pages` is not to be used by anybody else."""
        for page in pages:
            self._forget(page)

    def _forget(self, page: int) -> None:
        self._notes.pop(page, None)
        key = self._keys.pop(page, None)
        if key is not None:
            del self._published[key]

    def check_empty(self) -> None:
        """Raise RuntimeError if any page is still held: called when no request runs, it finds leaks."""
        if self._holders:
            raise RuntimeError(f"{len(self._holders)} pages leaked: {sorted(self._holders)[:8]}")
