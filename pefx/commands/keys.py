"""`pefx keys`: who may use a server, in a file that the server reads again when it changes."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import arg, subcommand

from pefx.commands.shown import Switch, say
from pefx.errors import PefxError
from pefx.http.keys import Key, changing, new_key, read_keys
from pefx.store.encoding import to_plain
from pefx.store.names import check_label, check_name

KeyPath = Annotated[Path, arg(metavar="FILE"), tyro.conf.Positional]


@dataclass(frozen=True)
class Create:
    """Make a key and print it, once: only its hash is kept."""

    path: KeyPath
    """The file of keys; it is made where there is none."""
    name: str
    """Whose key it is, for logs and lists."""
    policies: tuple[str, ...] = ()
    """Policies it may see: names, or beginnings of names that end in `*`."""
    owners: tuple[str, ...] = ()
    """Whose policies it may see."""
    memories: tuple[str, ...] = ()
    """Policies as which its requests may keep memories, and which it sees: names, or beginnings that end in `*`."""
    base: bool = True
    """Whether it may ask the bare base."""
    admin: Switch = False
    """It may change what is served."""
    priority: int = 0
    """The most that its requests may claim, -100 to 100."""
    requests_per_minute: int | None = None
    """Its most; none where not given."""
    tokens_per_minute: int | None = None
    """Its most, of prompts and answers together."""
    concurrent: int | None = None
    """Its most requests at once."""
    json: Switch = False
    """Print JSON instead of lines."""

    def run(self) -> int:
        self._check()
        limits = {name: getattr(self, name) for name in ("requests_per_minute", "tokens_per_minute", "concurrent")}

        def make(id: str, hash: str) -> Key:
            return Key(
                id=id,
                name=self.name,
                hash=hash,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                policies=self.policies,
                owners=self.owners,
                memories=self.memories,
                base=self.base,
                admin=self.admin,
                priority=self.priority,
                **limits,
            )

        with changing(self.path) as keys:
            key, plain = new_key(make)
            keys.keys.append(key)
        say(self.json, shown(key) | {"key": plain}, f"{plain}\nkey {key.id} of '{key.name}'; it is not shown again")
        return 0

    def _check(self) -> None:
        check_label("name", self.name)
        for owner in self.owners:
            check_label("owner", owner)
        for option, pattern in [("policies", one) for one in self.policies] + [
            ("memories", one) for one in self.memories
        ]:
            if not pattern.endswith("*"):
                check_name(pattern)
            elif not pattern.isascii() or "*" in pattern[:-1]:
                raise PefxError(f"--{option} {pattern!r}: '*' stands at the end of a beginning of names only")
        if not -100 <= self.priority <= 100:
            raise PefxError(f"--priority {self.priority} is none of -100 to 100")
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PefxError(f"--{name.replace('_', '-')} {value}: must be at least 1; leave it out for no limit")


@dataclass(frozen=True)
class List:
    """Show the keys, without what is secret."""

    path: KeyPath
    """The file of keys."""
    json: Switch = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        keys = read_keys(self.path).keys
        if self.json:
            print(json.dumps([shown(key) for key in keys], indent=2))
            return 0
        table = Table("id", "name", "sees", "may", "limits", "created", title=f"keys in {self.path}")
        for key in keys:
            memories = [f"keeps {pattern}" for pattern in key.memories]
            sees = [
                *key.policies,
                *memories,
                *(f"owner {owner}" for owner in key.owners),
                *(["the base"] if key.base else []),
            ]
            limits = {
                "requests/min": key.requests_per_minute,
                "tokens/min": key.tokens_per_minute,
                "at once": key.concurrent,
            }
            told = ", ".join(f"{value:,} {name}" for name, value in limits.items() if value is not None)
            table.add_row(
                *(key.id, key.name, ", ".join(sees) or "nothing", "administer" if key.admin else "ask"),
                *(told or "none", key.created),
            )
        Console().print(table)
        return 0


@dataclass(frozen=True)
class Revoke:
    """Take a key back. Servers notice within a second."""

    path: KeyPath
    """The file of keys."""
    key: Annotated[str, arg(metavar="ID"), tyro.conf.Positional]
    """The key's id, as `pefx keys list` shows it."""
    json: Switch = False
    """Print JSON instead of a line."""

    def run(self) -> int:
        read_keys(self.path)  # nothing is made where there is no file
        with changing(self.path) as keys:
            found = next((key for key in keys.keys if key.id == self.key), None)
            if found is None:
                raise PefxError(f"{self.path}: there is no key with the id '{self.key}'")
            keys.keys.remove(found)
        say(self.json, shown(found), f"key {found.id} of '{found.name}' is not taken any more")
        return 0


def shown(key: Key) -> dict[str, Any]:
    """A key without its hash."""
    return {name: value for name, value in to_plain(key).items() if name != "hash"}


Action = (
    Annotated[Create, subcommand("create")]
    | Annotated[List, subcommand("list")]
    | Annotated[Revoke, subcommand("revoke")]
)
