"""What the catalog remembers: typed frozen records. How they are written is in `pefx.store.encoding`.

A change of a class below (or of `AdapterSpec`) needs a new `SCHEMA` and a way to read the old one, in
`pefx.store.schemas`. Times are ISO 8601, UTC.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pefx.config import AdapterSpec
from pefx.store.stages import StageState

PolicyState = Literal["recorded", "active", "retired"]
SessionState = Literal["open", "checkpointed", "closed"]

LATEST = "latest"  # the alias that a commit moves, and that a policy is served by where none is named

# From a state to those that may follow (MinT, "objects and states"); what is not here is refused. Stages of revisions
# are in `pefx.store.stages`.
POLICY_STATES: dict[PolicyState, tuple[PolicyState, ...]] = {
    "recorded": ("active", "retired"),
    "active": ("retired",),
    "retired": (),
}
SESSION_STATES: dict[SessionState, tuple[SessionState, ...]] = {
    "open": ("checkpointed", "closed"),
    "checkpointed": ("checkpointed", "closed"),
    "closed": (),
}


@dataclass(frozen=True)
class Policy:
    """The durable identity of a personal model. It is bound to one base and one adapter spec for life.

    `head` is the number of its newest revision (0: none yet), `head_hash` that revision's content hash; `aliases` name
    revisions by number, `latest` among them. `session` is the number of its newest session (0: none yet), the only one
    that may commit. `origin` is the revision it was branched from. After `expires` it is served no more. `edits` counts
    the changes of this record, so that no two versions of it are equal.
    """

    name: str
    base: str
    spec: AdapterSpec
    head: int
    head_hash: str
    created: str
    changed: str
    state: PolicyState = "active"
    owner: str | None = None
    tags: tuple[str, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)
    session: int = 0
    origin: str | None = None
    expires: str | None = None
    edits: int = 0


@dataclass(frozen=True)
class Session:
    """A policy while it trains, in the run `run`, from the revision `start` (None: from a fresh adapter).

    `step` is that of its newest checkpoint, which is in `checkpoint`, a place of the run's own.
    """

    policy: str
    number: int
    run: str
    created: str
    changed: str
    state: SessionState = "open"
    start: str | None = None
    step: int = 0
    checkpoint: str | None = None

    @property
    def key(self) -> str:
        return f"{self.policy}@{self.number}"


@dataclass(frozen=True)
class Revision:
    """One immutable exported adapter of a policy, and where it came from.

    Numbers count from 1. `content_hash` is `pefx.store.blob.content_hash`: weights, spec and base, nothing else, so
    two runs that end in the same bits have the same one. `parent` is the revision it was trained or branched from, as
    `policy@number` (None: from a fresh adapter), `step` the training step, `seeds` what was drawn from which,
    `metrics` what training measured, `blob` the key of its bytes, `blob_bytes` their count.
    """

    policy: str
    number: int
    content_hash: str
    base: str
    spec: AdapterSpec
    parent: str | None
    step: int
    seeds: dict[str, int]
    config: dict[str, Any]
    data_fingerprint: str
    metrics: dict[str, Any]
    code_version: str
    created: str
    blob: str
    blob_bytes: int
    session: int = 0

    @property
    def key(self) -> str:
        """`policy@number`: what residency and answers name."""
        return f"{self.policy}@{self.number}"


@dataclass(frozen=True)
class Stage:
    """How far a revision is on its way to being served; without this record it is "committed"."""

    policy: str
    number: int
    state: StageState
    changed: str

    @property
    def key(self) -> str:
        return f"{self.policy}@{self.number}"


@dataclass(frozen=True)
class Score:
    """What an evaluation found about a revision: what was asked (`renderer`, `data_fingerprint`), who judged it
    (`scorer`), and by which `path` it was computed: "isolated" loading, or "shared" serving among others.
    """

    policy: str
    number: int
    content_hash: str
    base: str
    renderer: str
    scorer: str
    path: Literal["isolated", "shared"]
    metrics: dict[str, float | int]
    samples: int
    data_fingerprint: str
    created: str

    @property
    def key(self) -> str:
        return f"{self.policy}@{self.number}"
