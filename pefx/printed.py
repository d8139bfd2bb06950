"""Tables as plain text, for a terminal, a file or a test."""

import io

from rich.console import Console
from rich.table import Table


def text_of(*tables: Table, width: int = 120) -> str:
    """The tables one under the other, without colours or markup, at most `width` characters wide."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
