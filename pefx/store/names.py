"""Names that people give, and the keys they are stored under.

Policy names hold no '@' and numbers have ten digits, so that the order of keys is that of lineages. Keys:
`policy/<name>`, `session/<name>@<number>`, `revision/<name>@<number>`, `stage/<name>@<number>`,
`score/<name>@<number>@<digest>`, `blob/<name>@<number>` a revision's weights, `parked/<name>@<session>@<micro-batches>`
a session that waits for a slot, and indexes of policies, whose values are empty: `owner/<owner>@<name>`,
`tag/<tag>@<name>`, `child/<source>@<number>@<name>` of branches.
"""

import re

from pefx.errors import PefxError

NAME_LENGTH = 128
NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
LABEL = re.compile(r"[A-Za-z0-9._:=+-]{1,64}")


def check_name(name: str) -> None:
    """PefxError unless `name` can name a policy: 1-128 of letters, digits, '.', '_', '-', in parts joined by '/'."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or not NAME.fullmatch(name):
        rule = f"1 to {NAME_LENGTH} of A-Z a-z 0-9 . _ -, parts joined by single '/'"
        raise PefxError(f"policy name {_shown(name)} is not allowed: use {rule}", "bad_name")
    if any(not part.strip(".") for part in name.split("/")):
        raise PefxError(f"policy name {_shown(name)} is not allowed: a part of only dots reads as a path", "bad_name")


def check_label(what: str, label: str) -> None:
    """PefxError unless `label` can be `what`: an alias, a tag or an owner; 1-64 of letters, digits and . _ : = + -."""
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise PefxError(f"{what} {_shown(label)} is not allowed: use 1 to 64 of A-Z a-z 0-9 . _ : = + -", "bad_name")


def is_alias(value: object) -> bool:
    """Whether `value` can name a revision: a label that is no number."""
    return isinstance(value, str) and LABEL.fullmatch(value) is not None and not value.isdigit()


def check_alias(alias: str) -> None:
    """PefxError unless `alias` can name a revision: a label that is no number."""
    check_label("alias", alias)
    if alias.isdigit():
        raise PefxError(f"alias '{alias}' is not allowed: a number after '@' is a revision", "bad_name")


def parse_reference(reference: str) -> tuple[str, int | str | None]:
    """`policy`, `policy@number` or `policy@alias` as (policy, number, alias or None). PefxError otherwise."""
    name, separator, which = reference.partition("@")
    check_name(name)
    if not separator:
        return name, None
    if which.isascii() and which.isdigit() and len(which) <= 10:
        return name, int(which)
    if not LABEL.fullmatch(which) or which.isdigit():
        raise PefxError(
            f"{reference!r}: after '@' comes a revision number or an alias, not {which!r}", "unknown_revision"
        )
    return name, which


def check_part(what: str, text: str) -> None:
    """PefxError where `text` cannot be looked for among names, which are ASCII."""
    if not text.isascii():
        raise PefxError(f"{what} {_shown(text)} is in no name: they are of A-Z a-z 0-9 . _ - /", "bad_name")


def policy_key(name: str) -> str:
    return f"policy/{name}"


def session_key(policy: str, number: int) -> str:
    return f"session/{policy}@{number:010d}"


def revision_key(policy: str, number: int) -> str:
    return f"revision/{policy}@{number:010d}"


def blob_key(policy: str, number: int) -> str:
    return f"blob/{policy}@{number:010d}"


def stage_key(policy: str, number: int) -> str:
    return f"stage/{policy}@{number:010d}"


def score_key(policy: str, number: int, digest: str) -> str:
    return f"score/{policy}@{number:010d}@{digest}"


def parked_key(policy: str, number: int, micro: int) -> str:
    return f"parked/{policy}@{number:010d}@{micro:010d}"


def owner_key(owner: str, policy: str) -> str:
    return f"owner/{owner}@{policy}"


def tag_key(tag: str, policy: str) -> str:
    return f"tag/{tag}@{policy}"


def child_key(source: str, number: int, policy: str) -> str:
    return f"child/{source}@{number:010d}@{policy}"


def split_key(key: str) -> tuple[str, int]:
    """The policy and number in the key of a session, parked or not, or of a revision, stage, score or blob.

    ValueError where it is of none.
    """
    name, number, *_ = key.split("/", 1)[1].split("@")
    return name, int(number)


def after(prefix: str) -> str:
    """The first key behind all keys that start with `prefix`; keys are ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _shown(name: object) -> str:
    text = str(name)
    return repr(name) if len(text) <= NAME_LENGTH else f"{text[:40]!r}... ({len(text)} characters)"
