"""The policies that this server knows, each with the revision that its plain name stands for. Safe for threads.

A policy is tracked from its first request on, and then stays with its revision until the next one is exposed: what
`latest` means here changes when new weights are in host memory, not when they are committed. Those longest without a
request are forgotten.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import RLock

from pefx.errors import PefxError
from pefx.store.readiness import Readiness
from pefx.store.records import Revision
from pefx.store.stages import StageState

KEPT = 2  # exposed revisions of a policy: its own, and the one before, to go back to


@dataclass(eq=False)
class Track:
    """`latest` is what the catalog's `latest` named when it was looked at last (None: not yet), `record` the policy's
    record then. `asked`: there was a request since `revision` became what it is. `exposed`, newest last, are those that
    are exposed in `Readiness`."""

    revision: Revision
    latest: int | None = None
    owner: str | None = None
    record: bytes | None = None
    asked: bool = True
    exposed: list[Revision] = field(default_factory=list)


class Tracks:
    """At most `most` policies. `readiness` holds the weights that wait for their first request."""

    def __init__(self, readiness: Readiness, most: int):
        self.readiness, self._most = readiness, most
        self._lock = RLock()
        self._tracks: OrderedDict[str, Track] = OrderedDict()
        self._withdrawn: set[str] = set()

    def __len__(self) -> int:
        return len(self._tracks)

    def all(self) -> list[Track]:
        with self._lock:
            return list(self._tracks.values())

    def get(self, policy: str) -> Track | None:
        """The track of `policy`, as it is."""
        with self._lock:
            return self._tracks.get(policy)

    def ask(self, policy: str) -> Revision | None:
        """What a request for `policy` is served by; None where it is not tracked."""
        with self._lock:
            track = self._tracks.get(policy)
            if track is None:
                return self._exposed_elsewhere(policy)
            self._tracks.move_to_end(policy)
            track.asked = True
            return track.revision

    def begin(self, revision: Revision, owner: str | None) -> Revision:
        """Track the policy of `revision`, the catalog's latest. Returns what it is served by: the first to begin."""
        with self._lock:
            track = self._tracks.get(revision.policy)
            if track is None:
                track = Track(revision, latest=revision.number, owner=owner)
                self._put(track)
            return track.revision

    def switch(self, revision: Revision) -> None:
        """From now on the policy is served by `revision`, whose weights come when they are asked for."""
        with self._lock:
            track = self._tracks.get(revision.policy)
            if track is not None:
                self._withdraw(track.exposed)
                track.revision, track.exposed, track.asked = revision, [], False

    def advance(self, revision: Revision) -> None:
        """As `switch`, to what has become the policy's latest; unless a later one was first."""
        with self._lock:
            track = self._tracks.get(revision.policy)
            if track is not None and (track.latest is None or track.latest < revision.number):
                self.switch(revision)
                track.latest = revision.number

    def expose(self, revision: Revision) -> None:
        """As `Readiness.expose`; older revisions than the one before are withdrawn."""
        with self._lock:
            self.readiness.expose(revision)
            self._current(revision)

    def select(self, revision: Revision) -> None:
        """As `Readiness.select`."""
        with self._lock:
            self.readiness.select(revision)
            self._current(revision)

    def withdraw(self, revision: Revision) -> None:
        """`revision` is not served here any more, until it is registered again."""
        with self._lock:
            if self.readiness.stage(revision) != "committed":
                self.readiness.withdraw(revision)
            self._withdrawn.add(revision.key)
            track = self._tracks.get(revision.policy)
            if track is not None:
                track.exposed = [other for other in track.exposed if other.key != revision.key]
                if track.revision.key == revision.key:
                    self.forget(revision.policy)

    def register(self, revision: Revision) -> None:
        """As `Readiness.register`."""
        with self._lock:
            self.readiness.register(revision)
            self._withdrawn.discard(revision.key)

    def check(self, revision: Revision) -> Revision:
        """`revision`, unless it was withdrawn: PefxError kind "not_exposed"."""
        if revision.key in self._withdrawn:
            raise PefxError(f"revision {revision.key} was withdrawn from this server", "not_exposed")
        return revision

    def stage(self, revision: Revision) -> StageState:
        """Its stage on this server. One that its policy's name stands for is exposed, however it came to be."""
        track = self.get(revision.policy)
        current = track is not None and track.revision.key == revision.key
        return "exposed" if current else self.readiness.stage(revision)

    def forget(self, policy: str) -> None:
        with self._lock:
            track = self._tracks.pop(policy, None)
            if track is not None:
                self._withdraw(track.exposed)

    def _exposed_elsewhere(self, policy: str) -> Revision | None:
        try:
            revision = self.readiness.resolve(policy)
        except PefxError:
            return None
        self._put(Track(revision, exposed=[revision]))
        return revision

    def _current(self, revision: Revision) -> None:
        track = self._tracks.get(revision.policy)
        if track is None:
            self._put(Track(revision, exposed=[revision]))
            return
        track.revision, track.asked = revision, False
        track.exposed = [*(other for other in track.exposed if other.key != revision.key), revision]
        self._withdraw(track.exposed[:-KEPT])
        track.exposed = track.exposed[-KEPT:]

    def _put(self, track: Track) -> None:
        self._tracks[track.revision.policy] = track
        while len(self._tracks) > self._most:
            self.forget(next(iter(self._tracks)))

    def _withdraw(self, revisions: list[Revision]) -> None:
        for revision in revisions:
            if self.readiness.stage(revision) == "exposed":
                self.readiness.withdraw(revision)
