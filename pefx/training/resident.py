"""Who is in which slot: the bank and its optimizer on the device, and the sessions that have places there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pefx.adapters.bank import bank_spec, empty_bank, load_adapter, read_adapter
from pefx.adapters.methods.table import Adapter
from pefx.adapters.sharded_slots import by_slot, of_one, read_slot, write_slot
from pefx.adapters.shared import Gradients, fresh_adapter
from pefx.adapters.slots import take_slots
from pefx.checkpoint import flatten
from pefx.compiler import jit
from pefx.mesh import fetch, made, of_base, place, share
from pefx.model import Base
from pefx.optim import init_opt
from pefx.training.sessions import Session


class Resident:
    """`bank` and `opt` have `slots` slots on each of `shards` shards; `sessions` is the run's list, kept true here.

    Made and used within the mesh it lies on, where `base` has what the adapters share. Sessions that have a slot from
    the start begin there, afresh. `gradients` of a session's first texts by the base's matrices at some sites, where
    one begins along them.
    """

    def __init__(
        self,
        base: Base,
        sessions: list[Session],
        slots: int,
        shards: int,
        accumulate: bool,
        gradients: Callable[[int, Sequence[str]], Gradients] | None = None,
    ):
        self._base, self.model, self.sessions, self.slots = base, base.config, sessions, slots
        self._gradients = gradients
        specs = [session.spec for session in sessions]
        self.bank = made(by_slot, lambda: empty_bank(self.model, bank_spec(specs), shards * slots, specs))
        self.opt = made(by_slot, lambda: init_opt(self.bank, accumulate))
        self._fresh: dict[str, np.ndarray] | None = None
        for index in self.here:
            self._load_fresh(index)

    @property
    def here(self) -> list[int]:
        """Sessions that have a slot, in order."""
        return [index for index, session in enumerate(self.sessions) if session.slot >= 0]

    def place(self, index: int) -> int:
        """A session's slot in the bank of all shards."""
        session = self.sessions[index]
        return session.shard * self.slots + session.slot

    def swaps(self, wanted: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
        """Who of `wanted` has no slot, the slot to come, and who has to leave it (None: nobody).

        Each is to be carried out before the next is asked for. Raises ValueError where they are more than the slots.
        """
        asked = set(wanted)
        for index in wanted:
            if self.sessions[index].slot >= 0:
                continue
            own = {one.slot: at for at, one in enumerate(self.sessions) if one.shard == self.sessions[index].shard}
            free = [slot for slot in range(self.slots) if own.get(slot) not in asked]
            if not free:
                raise ValueError(f"{len(asked)} sessions want slots, of which a shard has {self.slots}")
            slot = min(free, key=lambda slot: (slot in own, slot))
            yield index, slot, own.get(slot)

    def enter(self, index: int, slot: int, arrays: Mapping[str, np.ndarray] | None) -> None:
        """A session gets an empty slot of its shard, as what `leave` gave; None: as it begins."""
        self.sessions[index] = replace(self.sessions[index], slot=slot)
        if arrays is None:
            self._put(index, self._zeros())
            self._load_fresh(index)
        else:
            self._put(index, arrays)

    def leave(self, index: int) -> dict[str, np.ndarray]:
        """A session gives its slot up; all that it is, by name."""
        arrays = flatten(fetch(read_slot(self._tree(), self._at(self.place(index)))))
        self.sessions[index] = replace(self.sessions[index], slot=-1)
        return {name: np.asarray(x) for name, x in arrays.items()}

    def vacate(self) -> None:
        """All give their slots up, and nothing is kept of them."""
        self.sessions[:] = [replace(session, slot=-1) for session in self.sessions]

    def adapter(self, index: int) -> Adapter:
        """The adapter of a session that has a slot, on the host."""
        return read_adapter(self.bank, self.place(index), self.model, self.sessions[index].spec)

    def state(self, count: int | None = None) -> Any:
        """The part of all who are here, in the order of the sessions, not of slots; or something like that of `count`
        sessions.
        """
        places = [self.place(index) for index in self.here] if count is None else [0] * count
        return _take(self._tree(), self._at(places))

    def _tree(self) -> dict[str, Any]:
        return {"bank": self.bank, "opt": self.opt}

    def _at(self, places: int | Sequence[int]) -> Any:
        return share(of_base, np.asarray(places, np.int32))

    def _put(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        like = self._tree()
        named = flatten(like)
        part = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named])
        found = write_slot(like, self._at(self.place(index)), share(of_one, part))
        self.bank, self.opt = place(by_slot, found["bank"]), place(by_slot, found["opt"])

    def _load_fresh(self, index: int) -> None:
        session = self.sessions[index]
        along = None if self._gradients is None else partial(self._gradients, index)
        fresh = fresh_adapter(self._base, session.spec, session.seed, along)
        self.bank = load_adapter(self.bank, self.place(index), fresh, session.spec, self._base)

    def _zeros(self) -> dict[str, np.ndarray]:
        """An empty slot."""
        if self._fresh is None:
            like = jax.eval_shape(lambda tree: take_slots(tree, jnp.zeros(1, jnp.int32)), self._tree())
            self._fresh = {name: np.zeros(x.shape, x.dtype) for name, x in flatten(like).items()}
        return self._fresh


def sessions_of(state: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    """What `Resident.state` gave, session by session, each as `leave` gives it."""
    whole = {name: np.asarray(x) for name, x in flatten(fetch(state)).items()}
    for row in range(count):
        yield {name: x[row : row + 1] if x.ndim == 1 else x[:, row : row + 1] for name, x in whole.items()}


_take = jit(take_slots)
