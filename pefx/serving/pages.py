"""Who owns which page of the key and value pool."""

from pefx.errors import PefxError


class PageAllocator:
    """Hands out the pool's pages 0..total-1 and takes them back; a page has one owner at a time."""

    def __init__(self, total: int):
        if total < 1:
            raise PefxError(f"a pool needs at least one page, got {total}")
        self.total = total
        # A stack: the page given back last goes out first, while it may still be in a cache.
        self._free = list(range(total - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...] | None:
        """`count` pages, or None (and nothing taken) where fewer are free."""
        if count < 0:
            raise ValueError(f"cannot take {count} pages")
        if count > len(self._free):
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        self._taken.update(pages)
        return pages

    def give_back(self, pages: tuple[int, ...]) -> None:
        """Return pages taken before. Raises RuntimeError for a page that is not out (freed twice, or never taken)."""
        if len(set(pages)) < len(pages) or not self._taken.issuperset(pages):
            stray = sorted(page for page in pages if page not in self._taken)
            raise RuntimeError(f"pages {stray or list(pages)} are given back but not taken, or twice at once")
        self._taken.difference_update(pages)
        self._free.extend(reversed(pages))

    def check_empty(self) -> None:
        """Raise RuntimeError if any page is still out: called when no request runs, it finds leaks."""
        if self._taken:
            raise RuntimeError(f"{len(self._taken)} pages leaked: {sorted(self._taken)[:8]}")
