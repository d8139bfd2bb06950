"""What `pefx catalog` prints about `pefx.store.views`: tables for people; JSON is the views themselves."""

import json
from typing import Any

from rich.table import Table

from pefx.printed import text_of
from pefx.store.audit import Audit
from pefx.store.difference import Difference
from pefx.store.encoding import to_plain
from pefx.store.records import Policy, Revision
from pefx.store.views import Row, Stats

WIDTH = 120


def as_json(value: Any) -> str:
    """Plain data as indented JSON."""
    return json.dumps(value, indent=2)


def list_table(rows: list[Row], location: str, more: bool) -> str:
    """One line per policy: what it is, and its latest revision. `more`: the page is full, there may be others."""
    if not rows:
        return f"catalog '{location}' holds no such policy"
    title = f"{len(rows)} policies in {location}" + (
        f"; for the next page: --behind {rows[-1].policy.name}" if more else ""
    )
    columns = ["policy", "state", "latest", "step", "rank", "size", "content", "owner, tags", "created"]
    table = _table(title, columns, right=("latest", "step", "rank", "size"))
    for row in rows:
        policy, latest = row.policy, row.latest
        labels = " ".join([*([policy.owner] if policy.owner else []), *(f"#{tag}" for tag in policy.tags)])
        table.add_row(
            policy.name,
            policy.state,
            "-" if latest is None else str(latest.number),
            "-" if latest is None else str(latest.step),
            str(policy.spec.rank),
            "-" if latest is None else size(latest.blob_bytes),
            "-" if latest is None else short(latest.content_hash),
            labels,
            time(policy.created if latest is None else latest.created),
        )
    return text_of(table, width=WIDTH)


def show_tables(about: dict[str, Any]) -> str:
    """All fields of a policy, its revision, session and scores."""
    name = about["policy"]["name"]
    tables = [_facts(f"policy {name}", about["policy"])]
    if about["revision"] is not None:
        number = about["revision"]["number"]
        tables.append(_facts(f"revision {name}@{number}", {**about["revision"], "stage": about["stage"]}))
    if about["session"] is not None:
        tables.append(_facts(f"session {about['session']['number']} of {name}", about["session"]))
    if about["scores"]:
        scores = _table("scores", ["scorer", "renderer", "path", "samples", "metrics", "created"], right=("samples",))
        for score in about["scores"]:
            scores.add_row(
                score["scorer"],
                score["renderer"],
                score["path"],
                str(score["samples"]),
                json.dumps(score["metrics"]),
                time(score["created"]),
            )
        tables.append(scores)
    return text_of(*tables, width=WIDTH)


def log_table(policy: Policy, revisions: list[Revision]) -> str:
    """The history of a policy, newest first, with the aliases that name its revisions."""
    columns = ["revision", "aliases", "parent", "step", "size", "content", "code", "created"]
    table = _table(f"history of {policy.name}", columns, right=("revision", "step", "size"))
    for revision in reversed(revisions):
        aliases = [alias for alias, number in sorted(policy.aliases.items()) if number == revision.number]
        table.add_row(
            str(revision.number),
            " ".join(aliases),
            revision.parent or "-",
            str(revision.step),
            size(revision.blob_bytes),
            short(revision.content_hash),
            revision.code_version,
            time(revision.created),
        )
    return text_of(table, width=WIDTH)


def diff_tables(found: Difference) -> str:
    """Fields that differ, and how far weights moved."""
    fields = _table(f"{found.before} to {found.after}", ["field", "before", "after"])
    for name, (before, after) in found.fields.items():
        fields.add_row(name, _compact(before), _compact(after))
    if found.same_content:
        fields.add_row("weights", "the same", "the same")
        return text_of(fields, width=WIDTH)
    sites = _table("weights", ["site", "norm before", "norm after", "change", "relative"], right=("norm before",))
    for site in found.sites:
        relative = f"{site.change / site.before:.1%}" if site.before else "-"
        sites.add_row(site.site, f"{site.before:.4g}", f"{site.after:.4g}", f"{site.change:.4g}", relative)
    return text_of(fields, sites, width=WIDTH)


def stats_table(found: Stats, location: str) -> str:
    """Figures of a catalog."""
    facts: dict[str, Any] = {f"{kind} records": f"{count:,}" for kind, count in found.records.items()}
    facts["policies by state"] = _counted(found.states)
    facts["ranks"] = _counted(found.ranks)
    facts["bases"] = ", ".join(f"{short(base)} {count:,}" for base, count in found.bases.most_common(5)) or "-"
    facts["owners"] = f"{found.owners:,}"
    facts["bytes of weights"] = f"{found.revision_bytes:,}"
    facts["bytes on disk"] = "-" if found.disk_bytes is None else f"{found.disk_bytes:,}"
    return text_of(_facts(f"catalog {location}", facts), width=WIDTH)


def audit_text(found: Audit, location: str) -> str:
    """What an audit saw, and every fault."""
    seen = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.counts.items())) or "nothing"
    lines = [f"{location}: {seen}; {found.blob_bytes:,} bytes of weights hashed"]
    if found.unnamed:
        lines.append(f"{location}: {len(found.unnamed):,} blobs are named by no revision; gc removes them")
    lines += [f"{location}: fault in '{fault.key}': {fault.what}" for fault in found.faults]
    lines.append(f"{location}: {len(found.faults)} faults" if found.faults else f"{location}: no fault")
    return "\n".join(lines)


def plain_audit(found: Audit) -> dict[str, Any]:
    """`audit_text` as data."""
    return {
        "records": dict(found.counts),
        "blob_bytes": found.blob_bytes,
        "unnamed_blobs": len(found.unnamed),
        "faults": [to_plain(fault) for fault in found.faults],
    }


def short(digest: str) -> str:
    """Enough of a hash for people."""
    return digest.removeprefix("sha256:")[:12]


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1024:.1f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"


def time(text: str) -> str:
    """A record's time without its zone, which is UTC."""
    return text.removesuffix("+00:00").replace("T", " ")


def _table(title: str, columns: list[str], right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _facts(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for field, value in values.items():
        table.add_row(field.replace("_", " "), value if isinstance(value, str) else _compact(value))
    return table


def _counted(counts: Any) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "-"


def _compact(value: Any) -> str:
    return "-" if value is None else json.dumps(value)
