"""A run's sessions in the catalog: it says there whom it trains, how far they are, and that it is done."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.store.records import Session
from pefx.store.sessions import Wanted, find_session, move_sessions, open_sessions


class Tenure:
    """The sessions of one run, whose name is its output directory; without a catalog (None), nothing happens."""

    def __init__(self, catalog: Catalog | None, run: str):
        self._catalog, self._run = catalog, run
        self._sessions: dict[str, Session] = {}

    def begin(self, wanted: Iterable[Wanted]) -> None:
        """Open the sessions, if that was not done: from now on only this run commits to these policies."""
        if self._catalog is not None and not self._sessions:
            self._sessions = {session.policy: session for session in open_sessions(self._catalog, self._run, wanted)}

    @property
    def numbers(self) -> dict[str, int]:
        """Session numbers by policy, to be saved with the run's state."""
        return {policy: session.number for policy, session in self._sessions.items()}

    def go_on(self, numbers: Mapping[str, int]) -> None:
        """Take up the sessions of a saved run. PefxError kind "superseded" where a later run trains a policy now.

        A catalog that does not know all of them is another one: new sessions will be opened there.
        """
        if self._catalog is None:
            return
        known: dict[str, Session] = {}
        for name, number in numbers.items():
            try:
                policy = self._catalog.policy(name)
            except PefxError as error:
                if error.kind == "unknown_policy":
                    return
                raise
            session = find_session(self._catalog, policy, number)
            if session is None or session.run != self._run:
                return
            if policy.session != number:
                later = find_session(self._catalog, policy)
                raise PefxError(
                    f"{self._run}: policy '{name}' is trained by a later run, "
                    f"{later.run if later else 'session ' + str(policy.session)}; this one can commit no more",
                    "superseded",
                )
            known[name] = session
        self._sessions = known

    def checkpointed(self, step: int) -> None:
        """The state of `step` is on disk."""
        self._move("checkpointed", step)

    def end(self, step: int) -> None:
        """All is committed."""
        self._move("closed", step)

    def _move(self, state, step: int) -> None:
        if self._catalog is not None and self._sessions:
            place = str(Path(self._run) / "checkpoints" / str(step))
            moved = move_sessions(self._catalog, self._sessions.values(), state, step, place)
            self._sessions = {session.policy: session for session in moved}
