"""What a request's `model` stands for: the base, or a revision that the key may see. Never another one in its place.

A tracked policy needs no catalog. Others are looked up beside the event loop, within a time; numbers and aliases are
remembered for a moment, and beyond it where the catalog is gone.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pefx.errors import PefxError
from pefx.http.keys import Key
from pefx.http.served import Served
from pefx.http.tracks import Tracks
from pefx.serving.policies import UNAVAILABLE
from pefx.store.names import parse_reference
from pefx.store.records import Policy, Revision

LOOKUPS = 8  # at once
MOST = 10_000  # numbers and aliases that are remembered

Result = TypeVar("Result")


def hidden(model: str) -> PefxError:
    """The same for what is not there and for what a key may not see."""
    return PefxError(f"the model '{model}' does not exist", "unknown_policy")


class Resolver:
    """`timeout` seconds for a look into the catalog; `fresh` seconds are numbers and aliases believed."""

    def __init__(self, served: Served, tracks: Tracks | None, *, timeout: float, fresh: float):
        self.served, self.tracks = served, tracks
        self._timeout, self._fresh = timeout, fresh
        self._pool = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="pefx-catalog")
        self._named: OrderedDict[tuple[str, int | str], tuple[Revision, float]] = OrderedDict()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, model: str, key: Key) -> Revision | None:
        """What serves `model`: None is the base. PefxError for what `key` does not see, "storage" without a catalog."""
        if model == self.served.name:
            if not key.base:
                raise hidden(model)
            return None
        policy, which = self.split(model)
        await self.check_seen(policy, key, model)
        if self.tracks is None:
            raise hidden(model)
        known = self.tracks.ask(policy) if which is None else self._exposed(policy, which)
        if known is None:
            known = await self._look_up(policy, which, model)
        return self.tracks.check(known)

    def split(self, model: str) -> tuple[str, int | str | None]:
        """Policy and number or alias in `model`."""
        try:
            return parse_reference(model)
        except PefxError:
            raise hidden(model) from None

    async def check_seen(self, policy: str, key: Key, model: str) -> None:
        """Raise PefxError where `key` may not see `policy`, or no policy of that name could be owned by its owners."""
        if key.names(policy):
            return
        if key.owners and self.served.catalog is not None:
            track = None if self.tracks is None else self.tracks.get(policy)
            owner = track.owner if track is not None else None
            owner = owner or (await self.policy(policy, model)).owner
            if owner in key.owners:
                return
        raise hidden(model)

    async def policy(self, name: str, model: str) -> Policy:
        """The record of a policy."""
        catalog = self.served.catalog
        if catalog is None:
            raise hidden(model)
        return await self.beside(lambda: catalog.policy(name), model)

    async def beside(self, call: Callable[[], Result], model: str | None = None) -> Result:
        """`call` in a thread. Where `model` is not in the catalog, no more is told than that."""
        work = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.wait_for(work, self._timeout)
        except TimeoutError:
            raise PefxError(f"the catalog did not answer within {self._timeout:g} s", "storage") from None
        except PefxError as error:
            if model is not None and error.kind in ("unknown_policy", "unknown_revision", "bad_name"):
                raise hidden(model) from error
            raise

    def _exposed(self, policy: str, which: int | str) -> Revision | None:
        """A revision that was named by number or alias, where that is known for now."""
        assert self.tracks is not None
        if isinstance(which, int):
            try:
                return self.tracks.readiness.resolve(policy, which)
            except PefxError:
                pass
        known = self._named.get((policy, which))
        return known[0] if known is not None and time.monotonic() < known[1] else None

    async def _look_up(self, policy: str, which: int | str | None, model: str) -> Revision:
        assert self.tracks is not None
        try:
            revision, owner = await self.beside(lambda: self._find(policy, which), model)
        except PefxError as error:
            stale = None if which is None else self._named.get((policy, which))
            if error.kind in UNAVAILABLE and stale is not None:
                return stale[0]
            raise
        if which is None:
            return self.tracks.begin(revision, owner)
        self._named[policy, which] = revision, time.monotonic() + self._fresh
        self._named.move_to_end((policy, which))
        if len(self._named) > MOST:
            self._named.popitem(last=False)
        return revision

    def _find(self, policy: str, which: int | str | None) -> tuple[Revision, str | None]:
        revision, catalog = self.served.policies.resolve(policy, which), self.served.catalog
        return revision, None if catalog is None else catalog.policy(policy).owner

    def forget(self, policy: str, which: Any) -> None:
        """What `which` names has changed."""
        self._named.pop((policy, which), None)
