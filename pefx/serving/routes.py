"""Which experts the tokens of a sequence went to, as far as its steps have told. Plain numpy."""

import numpy as np

MISSING = 65535  # no expert has this id


class RouteRecord:
    """Routes of one sequence while it grows: of each token as input, the ids of its `k` experts in each of the `Lm`
    layers that have experts, in their order.

    The last token drawn is never fed, so it has none. A token that is computed again after a preemption is told again.
    """

    def __init__(self):
        self._ids: np.ndarray | None = None

    def put(self, start: int, ids: np.ndarray) -> None:
        """Those of tokens `start` on, uint16 [n, Lm, k]."""
        end = start + len(ids)
        held = 0 if self._ids is None else len(self._ids)
        if end > held:
            more = np.full((max(end, 2 * held) - held, *ids.shape[1:]), MISSING, np.uint16)
            self._ids = more if self._ids is None else np.concatenate([self._ids, more])
        assert self._ids is not None
        self._ids[start:end] = ids

    def of(self, start: int, end: int) -> np.ndarray:
        """A copy of those of tokens `start` to `end`, uint16 [n, Lm, k]; `MISSING` where nothing was told.

        Raises RuntimeError before any was told: the shape is not known then.
        """
        if self._ids is None:
            raise RuntimeError("no step has told routes of this sequence")
        missing = np.full((max(0, end - max(start, len(self._ids))), *self._ids.shape[1:]), MISSING, np.uint16)
        return np.concatenate([self._ids[start:end], missing])
