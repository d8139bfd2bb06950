"""What `pefx catalog ls | show` print: a table for people or JSON for programs, from the same rows."""

import json
import re
from typing import Any

from rich.table import Table

from pefx.errors import PefxError
from pefx.printed import text_of
from pefx.store.catalog import Catalog
from pefx.store.records import Revision, to_plain

WIDTH = 120


def render_list(catalog: Catalog, as_json: bool = False, prefix: str = "") -> str:
    """One row per policy whose name starts with `prefix`: latest revision, step, rank, targets, size, base, time."""
    latest = [catalog.get(name) for name in catalog.policies(prefix)]
    if as_json:
        return json.dumps([to_plain(revision) for revision in latest], indent=2)
    if not latest:
        return f"catalog '{catalog.location}' holds no policy" + (f" that starts with '{prefix}'" if prefix else "")
    table = Table(title=f"{len(latest)} policies in {catalog.location}", title_justify="left")
    for name, justify in [("policy", "left"), ("latest", "right"), ("step", "right"), ("rank", "right")]:
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name in ("size", "content", "base", "created"):
        table.add_column(name, justify="right" if name == "size" else "left")
    for revision in latest:
        table.add_row(
            revision.policy, str(revision.number), str(revision.step), str(revision.spec.rank), *_tail(revision)
        )
    return text_of(table, width=WIDTH)


def render_show(catalog: Catalog, reference: str, as_json: bool = False) -> str:
    """Everything about `policy` (its latest revision) or `policy@number`, and the policy's history."""
    name, number = parse_reference(reference)
    revision, history = catalog.get(name, number), catalog.log(name)
    if as_json:
        return json.dumps({"revision": to_plain(revision), "log": [to_plain(old) for old in history]}, indent=2)
    facts = Table(title=f"revision {revision.key}", title_justify="left", show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for field, value in to_plain(revision).items():
        facts.add_row(field.replace("_", " "), value if isinstance(value, str) else _compact(value))
    log = Table(title=f"history of {name}", title_justify="left")
    for column in ("revision", "parent", "step", "size", "content", "base", "created"):
        log.add_column(column)
    for old in reversed(history):
        parent = "-" if old.parent is None else str(old.parent)
        log.add_row(str(old.number), parent, str(old.step), *_tail(old))
    return text_of(facts, log, width=WIDTH)


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`policy` or `policy@number` (also `policy@latest`) as (policy, number or None). PefxError otherwise."""
    name, separator, number = reference.partition("@")
    if not separator or number == "latest":
        return name, None
    if not re.fullmatch(r"[0-9]{1,10}", number):
        raise PefxError(
            f"{reference!r}: after '@' comes a revision number or 'latest', not {number!r}", "unknown_revision"
        )
    return name, int(number)


def _tail(revision: Revision) -> tuple[str, str, str, str]:
    return _size(revision.blob_bytes), _short(revision.content_hash), _short(revision.base), revision.created


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"


def _compact(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
