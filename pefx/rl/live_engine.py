"""The serving engine over what training has on the device: its base, and its bank as it is between two updates."""

from collections.abc import Iterable

from pefx.adapters.bank import Bank
from pefx.config import MeshConfig
from pefx.data.tokenizer import Tokenizer
from pefx.model import Base
from pefx.serving.assembly import EngineSize, Supply, assemble
from pefx.serving.engine import Way
from pefx.serving.fair_queue import FairQueue
from pefx.serving.live import Held, LiveRevision, LiveWeights

ALL_PASS = 1 << 30  # sequences: policies of one shard wait for its places, not for those of others
WAY = Way(patience=ALL_PASS)


class LiveEngine:
    """`engine` draws from policies in the bank that is trained, which is never copied.

    Made and used within the mesh on which base and bank are. A training step takes the bank away: before the next step
    of the engine `hold` must say what there is instead.
    """

    def __init__(
        self,
        base: Base,
        bank: Bank,
        held: Iterable[Held],
        *,
        mesh: MeshConfig,
        tokenizer: Tokenizer,
        size: EngineSize,
        way: Way = WAY,
    ):
        self._weights = LiveWeights(mesh.rows)
        supply = Supply(bank, self._weights.slots, self._weights)
        self.engine, self._runner = assemble(base, supply, tokenizer, size, FairQueue(), way)
        self._slots = bank.slots // mesh.rows
        self.hold(bank, held)

    def hold(self, bank: Bank, held: Iterable[Held]) -> None:
        """From now on `bank` is drawn from, and these are in its slots, each the revision that its updates made it.

        Raises ValueError where a policy or a slot is named twice or does not exist; RuntimeError where sequences of a
        revision that leaves its slot are on their way. Then nothing has changed.
        """
        held = list(held)
        strays = [one for one in held if not 0 <= one.slot < self._slots]
        if strays:
            raise ValueError(f"{strays[0].revision.key} is in slot {strays[0].slot}; a shard has {self._slots}")
        self._weights.hold(held, self.engine.in_use())
        self._runner.bank = bank

    def revision(self, policy: str) -> LiveRevision:
        """A policy as it is now. Raises PefxError (kind "unknown_policy") where it is in no slot."""
        return self._weights.revision(policy)
