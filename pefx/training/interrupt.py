"""SIGTERM and Ctrl-C as a question a loop asks between steps, so that what runs is always a whole step."""

import signal
from types import FrameType


class Interrupt:
    """While entered, the first SIGTERM or SIGINT is only remembered; a second SIGINT stops at once.

    `exit_code` is 128 + the signal's number (143 for SIGTERM, 130 for Ctrl-C), as shells report it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def by(self, step: int) -> bool:
        """Whether to stop before `step`."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal.value

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
