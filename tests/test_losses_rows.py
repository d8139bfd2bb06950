"""The table is complete and says of each loss what the host needs."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from pefx.losses import rows
from pefx.losses.rows import LOSSES, NUMBER, Loss

WORDS = {"surrogate": rows.Surrogate, "over": rows.Over, "old": rows.Old}
WORDS |= {"advantage": rows.Advantage, "aggregation": rows.Aggregation}


def test_rows_say_known_words_and_all_words_are_used():
    for field, words in WORDS.items():
        assert {getattr(row, field) for row in LOSSES.values()} == set(get_args(words)), field


def test_losses_are_numbered_in_the_order_of_the_table():
    assert list(NUMBER.items()) == [(name, index) for index, name in enumerate(LOSSES)]


def test_numbers_are_there_where_the_formula_reads_them():
    for name, row in LOSSES.items():
        assert (row.clip_low > 0) == (row.clip_high > 0) == ("clip(" in row.formula), name
        assert (row.beta > 0) == ("beta" in row.formula), name
        assert ("A" in row.formula) == (row.advantage != "none"), name
        assert row.source, name


def test_the_page_has_the_same_table():
    page = (Path(__file__).parent.parent / "docs" / "rl.md").read_text(encoding="utf-8").splitlines()
    lines = {line.split("`")[1]: line for line in page if line.startswith("| `")}
    assert list(lines) == list(LOSSES)
    for name, row in LOSSES.items():
        cells = [cell.strip() for cell in lines[name].strip("|").split("|")]
        words = ["" if word == "none" else word.replace("_", " ") for word in (row.old, row.advantage, row.aggregation)]
        clips = f"clip {_short(row.clip_low)}, {_short(row.clip_high)}" if row.clip_high else ""
        numbers = f"beta {_short(row.beta)}" if row.beta else clips
        assert cells == [f"`{name}`", _code(row.formula), *words, numbers, row.source], name


def _short(number: float) -> str:
    return f"{number:.4f}".rstrip("0").rstrip(".")


def _code(formula: str) -> str:
    """A formula and, behind a comma, the definition of what is in it, each as code."""
    first, *rest = re.split(", (?=[a-z] = )", formula)
    return ", ".join(f"`{part}`" for part in (first, *rest))


def test_no_two_rows_are_alike():
    told = {tuple(getattr(row, f.name) for f in fields(Loss) if f.name != "source") for row in LOSSES.values()}
    assert len(told) == len(LOSSES)
