"""The one error type that reaches a person: what was wrong, where, and what would be right."""

# Kinds of trouble that pass by themselves: the same request, asked again a moment later, may be served.
RETRYABLE = frozenset({"busy"})


class PefxError(Exception):
    """Bad input. `str(error)` is one line naming the file, line, field or request; commands exit with code 2."""

    kind = "invalid_input"

    def __init__(self, message: str, kind: str | None = None):
        super().__init__(message)
        if kind is not None:
            self.kind = kind

    @property
    def retryable(self) -> bool:
        """Whether the same request may be served if it is asked again."""
        return self.kind in RETRYABLE
