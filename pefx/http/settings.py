"""What a server is given: what it serves, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pefx.data.tokenizer import Message
from pefx.serving.policies import Policies
from pefx.store.catalog import Catalog
from pefx.store.readiness import Readiness


@runtime_checkable
class Speller(Protocol):
    """What is asked of a tokenizer: `pefx.data.tokenizer.Tokenizer`, or a stand-in."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def chat(self, messages: Sequence[Message]) -> list[int]: ...


@dataclass(frozen=True)
class Served:
    """A base by its public name and digest, with the most tokens of a sequence, and its policies.

    `engine` is as in `pefx.serving.engine`; it is closed at the end. Without a catalog there is no readiness, and only
    the base is served. A read-only catalog answers changes of aliases with a refusal.
    """

    name: str
    digest: str
    context: int
    engine: Any
    tokenizer: Speller
    policies: Policies
    catalog: Catalog | None = None
    readiness: Readiness | None = None


@dataclass(frozen=True)
class HttpSettings:
    """Where, for whom, and within which bounds. Times are seconds.

    `keys` is a file that `pefx keys` writes; without one everybody on this machine may do everything, and nobody else
    anything. `queue` answers may be in flight. `tracked` policies keep the revision that they resolve to.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    queue: int = 1024
    timeout: float = 600.0
    drain: float = 30.0
    poll: float = 5.0
    catalog_timeout: float = 5.0
    tracked: int = 10_000
    body_bytes: int = 4 << 20
    buffer: int = 4096
