"""How a long command shows where it is: a live bar on a terminal, a plain line every few seconds elsewhere."""

import time
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 5.0
Shown = TypeVar("Shown", bound="Display")


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """One named line that moves from `done` to `total`. Use as a context manager; `say` prints a line of its own."""

    def __init__(self, name: str, total: int, done: int, console: Console):
        self.console, self.name, self.total = console, name, total
        self._shown = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            title = TextColumn("{task.description}", style="bold")
            text = TextColumn("{task.fields[text]}", style="dim")
            self._bar = Progress(title, BarColumn(), text, console=console)
            self._task = self._bar.add_task(name, total=total, completed=done, text="compiling")

    def __enter__(self: Shown) -> Shown:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """One line of its own, above the bar."""
        self.console.print(f"{self.name}  {line}", markup=False)

    def show(self, done: int, text: str, now: bool = False) -> None:
        """`done` of the total is done; off a terminal `text` appears if it is time, or at once with `now`."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=self.total, text=text)
        elif now or time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.say(text)
