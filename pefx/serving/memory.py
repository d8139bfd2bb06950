"""What a sequence does to its memory, and what becomes of that. Plain Python, no device.

A state is a policy of its own (method `delta_state`): a request that names it is served by the revision that it is
`over`, and begins with what the memory held when the state was kept. See `pefx.layers.memory`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.packing import COMMIT, FRESH, GATHER
from pefx.serving.requests import Request, RequestError
from pefx.store.catalog import Catalog
from pefx.store.lifecycle import persist

Writes = Literal["prompt", "all", "none"]
Keep = Callable[["Kept"], str]  # gives the name of the revision


@dataclass(eq=False)
class Memory:
    """Of one sequence: which of its tokens are written, one by one or as a message that ends at `last`, the last of the
    prompt. It begins with `state`, a revision (None: empty). `place`: shard and page that hold it when it is over.
    """

    spec: AdapterSpec
    writes: Writes
    last: int
    state: Any = None
    place: tuple[int, int] = (-1, -1)

    def flags(self, start: int, end: int) -> np.ndarray:
        """Bits of `pefx.packing` for the tokens at positions [start, end)."""
        at = np.arange(start, end)
        written = {"prompt": at <= self.last, "all": at >= 0, "none": at < 0}[self.writes]
        done = written if self.spec.writes == "tokens" else written & (at == self.last)
        found = np.where(written, GATHER, 0) + np.where(done, COMMIT, 0)
        if start == 0 and self.state is None:
            found[0] += FRESH
        return found.astype(np.int32)

    def shared(self, tokens: int) -> int:
        """How many of so many leading tokens others write alike, whatever follows: so far may pages be shared."""
        whole = self.writes == "none" or (self.writes == "all" and self.spec.writes == "tokens")
        return tokens if whole else min(tokens, self.last + (self.spec.writes == "tokens"))

    @property
    def root(self) -> tuple[str, str]:
        """What of it, beside weights and tokens, keys and values depend on."""
        return self.writes, "" if self.state is None else self.state.content_hash


def memory_of(request: Request, revision: Any, state: Any, prompt: int) -> Memory | None:
    """The memory of a request served by `revision` that begins with `state`, its prompt of so many tokens; None where
    the adapter has none.

    Raises RequestError where it asks for a memory that is not there.
    """
    if revision is not None and revision.spec.method == "delta_mem":
        return Memory(revision.spec, request.writes, prompt - 1, state)
    for name, asks in (("remember", request.remember is not None), ("writes", request.writes != "prompt")):
        if asks:
            who = "the bare base" if revision is None else f"revision {revision.key}"
            raise RequestError(f"field '{name}': {who} has no memory; that is of method 'delta_mem'", id=request.id)
    return None


@dataclass(frozen=True)
class Kept:
    """A state to be kept as the newest revision of `policy`: `state [L, MR, R]`, what `revision` had read of `tokens`,
    after `before`, a state.
    """

    policy: str
    state: np.ndarray
    revision: Any
    before: Any
    tokens: list[int]

    @property
    def spec(self) -> AdapterSpec:
        """That of the policy."""
        return replace(self.revision.spec, method="delta_state", over=self.revision.key)


def keeper(catalog: Catalog, base: str) -> Keep:
    """What commits states of the base with that digest. It raises PefxError as `Catalog.commit`."""

    def keep(kept: Kept) -> str:
        if kept.before is not None and kept.before.spec != kept.spec:
            raise PefxError(
                f"state {kept.before.key} is of {kept.before.spec.over}, not of {kept.spec.over}", "wrong_spec"
            )
        digest = hashlib.sha256(np.asarray(kept.tokens, np.int32).tobytes()).hexdigest()
        parent = kept.revision if kept.before is None else kept.before
        committed = persist(
            lambda: catalog.commit(
                kept.policy,
                adapter={"memory": {"state": kept.state}},
                spec=kept.spec,
                base=base,
                step=0,
                seeds={},
                config={},
                data_fingerprint=f"sha256:{digest}",
                metrics={},
                parent=parent.key,
            )
        )
        return committed.key

    return keep
