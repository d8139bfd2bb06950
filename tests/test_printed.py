"""Tables as text: what is in a cell is printed as it is, and no line is too long or ends in spaces."""

from rich.table import Table

from pefx.printed import text_of


def test_cells_are_printed_as_they_are():
    table = Table("name", "value")
    table.add_row("[bold]x[/bold]", ":smile:")
    text = text_of(table, table, width=40)
    assert text.count("[bold]x[/bold]") == text.count(":smile:") == 2
    assert all(len(line) <= 40 and line == line.rstrip() for line in text.splitlines())
