"""Pages as HTML: templates, the stylesheet in each page, and the policy that lets a browser use nothing else."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pefx.store.listing import short, size, time
from pefx.web.wording import age, flat, number, policy_address, revision_address, search_address, state_of

FOLDER = Path(__file__).parent / "templates"
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@cache
def environment() -> Environment:
    """Templates with everything escaped and nothing left undefined."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"age": age, "number": number, "short": short, "size": size, "time": time, "compact": compact}
    made.globals |= {
        "style": Markup(STYLE),
        "flat": flat,
        "state_of": state_of,
        "policy_address": policy_address,
        "revision_address": revision_address,
        "search_address": search_address,
    }
    return made


def render(template: str, **values: Any) -> str:
    """The page of `template`."""
    return environment().get_template(template).render(**values)


def compact(value: Any) -> str:
    """Any plain value in one line: text as it is, numbers for people, the rest as JSON."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | list | tuple | dict) else number(value)
