"""A study's page: what was asked, by which command, from which commit; the table, and the picture."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.programs.commands import ROOT

PAGES = ROOT / "docs" / "studies"


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return f"{name or 'unknown'}{' with changes' if changed else ''}"


COMMIT = commit()  # as the study begins


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Page:
    """A page in `docs/studies`; `text` are its paragraphs, tables among them, `picture` is a file beside it."""

    name: str
    title: str
    command: str
    seeds: int
    text: Sequence[str]
    picture: str | None = None

    def write(self, folder: Path = PAGES) -> Path:
        """The file that was written."""
        made = f"Made by `{self.command}` at {COMMIT}, {self.seeds} seeds. Intervals are 95 % bootstrap over seeds."
        picture = [f"![{self.title}]({self.picture})"] if self.picture else []
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.md"
        path.write_text("\n\n".join([f"# {self.title}", *self.text[:1], made, *picture, *self.text[1:]]) + "\n")
        return path
