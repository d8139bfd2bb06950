"""What a server is given."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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

    `engine` is as in `pefx.serving.engine`; its thread works `within` that context, and it is closed at the end.
    Without a catalog there is no readiness, and only the base is served. A read-only one refuses changes of aliases.
    """

    name: str
    digest: str
    context: int
    engine: Any
    tokenizer: Speller
    policies: Policies
    catalog: Catalog | None = None
    readiness: Readiness | None = None
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
