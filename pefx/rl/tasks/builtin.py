"""The table of built-in tasks."""

from collections.abc import Mapping

from pefx.rl.tasks import arithmetic, countdown, edits, extraction, facts, lookup, preference, programs, sorting
from pefx.rl.tasks.kind import Kind

TASKS: Mapping[str, Kind] = {
    "arithmetic": arithmetic.KIND,
    "countdown": countdown.KIND,
    "edits": edits.KIND,
    "sorting": sorting.KIND,
    "json": extraction.KIND,
    "programs": programs.KIND,
    "preference": preference.KIND,
    "lookup": lookup.KIND,
    "facts": facts.KIND,
}
