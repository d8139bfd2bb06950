"""Stand-ins for serving tests: a device whose next token follows from a sequence's own tokens, slot and seed alone."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.packing import Span
from pefx.serving.engine import Engine, Way
from pefx.serving.generation import Outcome
from pefx.serving.pages import PageAllocator
from pefx.serving.policies import Policies
from pefx.serving.scheduler import Scheduler, Shard, StepSize
from pefx.serving.sequence import SAMPLE, Sequence, StepPlan
from pefx.store.records import Revision
from pefx.store.residency import Residency
from pefx.store.tiers import Tiers

BASE = "sha256:" + "a" * 64
SPEC = AdapterSpec(rank=4, targets=("q_proj", "experts.up_proj"))
VOCABULARY, EOS = 256, 0


def revision(policy: str, number: int = 1, **changes: Any) -> Revision:
    """A record as a catalog would hold it; the hash names policy and number."""
    made = Revision(
        policy=policy,
        number=number,
        content_hash=f"sha256:{policy}:{number}",
        base=BASE,
        spec=SPEC,
        parent=None,
        step=0,
        seeds={"run": 0},
        config={},
        data_fingerprint="",
        metrics={},
        code_version="",
        created="",
        blob="",
        blob_bytes=0,
    )
    return replace(made, **changes)


class FakeCatalog:
    """Revisions by policy; the "weights" of one name its key."""

    def __init__(self, *revisions: Revision):
        self.revisions = {(r.policy, r.number): r for r in revisions}
        self.damaged: set[str] = set()
        self.gone = False

    def serving(self, policy: str, which: int | str | None = None) -> Revision:
        if self.gone:
            raise PefxError("the catalog cannot be read", "storage")
        numbers = [n for p, n in self.revisions if p == policy]
        if not numbers:
            raise PefxError(f"policy '{policy}' is not in the catalog", "unknown_policy")
        number = max(numbers) if which in (None, "latest") else which
        if number not in numbers:
            raise PefxError(f"policy '{policy}' has no revision {which}", "unknown_revision")
        return self.revisions[policy, int(number)]

    def check_present(self) -> None:
        if self.gone:
            raise PefxError("the catalog cannot be read", "storage")

    def load(self, revision: Revision) -> Any:
        if revision.key in self.damaged:
            raise PefxError(f"revision {revision.key} is damaged", "damaged")
        return {"key": {revision.key: np.zeros(0)}}


class FakeTokenizer:
    """One token a byte, byte 0 ends a text."""

    eos = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class FakeDevice:
    """Remembers tokens by page as a pool would, and answers from what it remembers: a wrong page or slot shows."""

    def __init__(self, page_size: int, vocab_size: int = VOCABULARY, context: int = 64):
        self.page_size, self.vocab_size, self.context = page_size, vocab_size, context
        self.seconds, self.rows = 0.0, 0
        self.pool: dict[tuple[int, int, int], int] = {}
        self.bank: dict[tuple[int, int], str] = {}
        self.plans: list[StepPlan] = []
        self.loads: list[tuple[int, int, str]] = []

    def load(self, shard: int, slot: int, adapter: Any, spec: AdapterSpec) -> None:
        (key,) = adapter["key"]
        self.loads.append((shard, slot, key))
        self.bank[shard, slot] = key

    def begin(self, shard: int, page: int, state: np.ndarray) -> None:
        raise AssertionError("a state has no place here: tests of memories have a device")

    def recall(self, where: tuple[int, int], spec: AdapterSpec) -> np.ndarray:
        raise AssertionError("nothing is remembered here: tests of memories have a device")

    def run(self, plan: StepPlan) -> tuple[list[Outcome], list[np.ndarray | None]]:
        self.plans.append(plan)
        self.rows += sum(len(span.tokens) for span in plan.spans)
        for sequence, span in zip(plan.sequences, plan.spans, strict=True):
            for i, token in enumerate(span.tokens):
                self.pool[sequence.shard, *self._place(span, span.start + i)] = int(token)
        outcomes = []
        for row in plan.wanted:
            span, sequence = plan.spans[row.span], plan.sequences[row.span]
            shard, shaper = sequence.shard, sequence.shaper
            end = span.start + row.offset + 1
            context = [self.pool[shard, *self._place(span, p)] for p in range(end)]
            adapter = "base" if span.slot < 0 else self.bank[shard, span.slot]
            token = row.target if row.target != SAMPLE else self.draw(context, adapter, sequence.sampling.seed)
            mask = None if shaper is None else shaper.mask
            if row.target == SAMPLE and mask is not None:
                allowed = [t for t in range(self.vocab_size) if mask[t // 32] >> t % 32 & 1]
                token = token if token in allowed else allowed[token % len(allowed)]
            top = tuple((t, self.logprob(context, adapter, t)) for t in range(20)) if sequence.top else ()
            outcomes.append(Outcome(token, self.logprob(context, adapter, token), top))
        return outcomes, [self._routes(sequence, span) for sequence, span in zip(plan.sequences, plan.spans)]

    def _routes(self, sequence: Sequence, span: Span) -> np.ndarray | None:
        if sequence.routes is None:
            return None
        context = [self.pool[sequence.shard, *self._place(span, p)] for p in range(span.start + len(span.tokens))]
        adapter = "base" if span.slot < 0 else self.bank[sequence.shard, span.slot]
        return np.stack([routes_of(context[: p + 1], adapter) for p in range(span.start, len(context))])

    def warm(self) -> None:
        self.warmed = True

    def _place(self, span: Any, position: int) -> tuple[int, int]:
        return span.pages[position // self.page_size], position % self.page_size

    def draw(self, context: list[int], adapter: str, seed: int) -> int:
        """One letter in most cases, the end in one of sixteen."""
        value = _hash([context, adapter, seed])
        return EOS if value % 16 == 0 else 97 + value % 26

    def logprob(self, context: list[int], adapter: str, token: int) -> float:
        return -float(_hash([context, adapter, token]) % 1024) / 64


def routes_of(context: list[int], adapter: str) -> np.ndarray:
    """The experts of the last token of `context`, uint16 [2, 3]."""
    return np.frombuffer(hashlib.sha256(json.dumps([context, adapter]).encode()).digest()[:12], np.uint16).reshape(2, 3)


def _hash(value: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:8], "big")


SIZES = {"step_tokens": 16, "sequences": 4, "pages": 64, "slots": 2}
WAY = {"limit_bytes": 1 << 20, "workers": 2, "queue": 2}


def make_engine(
    catalog: FakeCatalog | None = None,
    device: FakeDevice | None = None,
    *,
    shards: int = 1,
    prefix_cache: bool = True,
    how: Way | None = None,
    grammars: Any = None,
    **more: int,
) -> Engine:
    """An engine over fakes, small enough that places, pages and slots run out.

    `more` are `SIZES` of it, and of its way to the store (`WAY`, see `Tiers`).
    """
    assert not set(more) - set(SIZES | WAY)
    sizes = SIZES | more
    device = device or FakeDevice(page_size=4)
    residencies = [Residency(sizes["slots"]) for _ in range(shards)] if catalog is not None else []
    scheduler = Scheduler(
        shards=[Shard(PageAllocator(sizes["pages"], prefix_cache), own) for own in residencies or [None] * shards],
        size=StepSize(sizes["sequences"], sizes["step_tokens"], 1, device.page_size),
    )
    policies = Policies(catalog, BASE, SPEC)
    way: dict[str, Any] = {name: (WAY | more)[name] for name in WAY}
    return Engine(
        device=device,
        scheduler=scheduler,
        policies=policies,
        source=Tiers(policies.load, slots=residencies, **way),
        tokenizer=FakeTokenizer(),
        grammars=grammars,
        way=how or Way(),
    )
