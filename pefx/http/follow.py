"""Continuous learning: what a tracked policy's `latest` comes to name in the catalog is prewarmed, then exposed.

A thread looks at the records of all tracked policies every few seconds, in batches. A revision that cannot be served is
told once, and the one before stays. Where the catalog is gone, all goes on with what is there.
"""

import logging
from concurrent.futures import Future
from threading import Event, Lock, Thread

from pefx.errors import PefxError
from pefx.http.log import tell
from pefx.http.tracks import Track, Tracks
from pefx.serving.policies import UNAVAILABLE, Policies
from pefx.store.catalog import Catalog
from pefx.store.lookup import check_alive, checked
from pefx.store.names import policy_key
from pefx.store.records import LATEST, Policy, Revision

BATCH = 1000  # records that are read at once


class Follower:
    """Every `poll` seconds, between `start` and `stop`. `look` may be called at any time, by any thread."""

    def __init__(self, tracks: Tracks, catalog: Catalog, policies: Policies, poll: float):
        self.reachable = True
        self._tracks, self._catalog, self._policies, self._poll = tracks, catalog, policies, poll
        self._stop = Event()
        self._lock = Lock()
        self._moving: set[str] = set()
        self._thread = Thread(target=self._run, name="pefx-follow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._poll):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 (whatever it is, the next look may do better)
                tell("following failed, and goes on", logging.ERROR, why=f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """Look at every tracked policy once, and begin what is to be done."""
        with self._lock:
            tracks = self._tracks.all()
            try:
                self._catalog.check_present()
                for start in range(0, len(tracks), BATCH):
                    self._look_at(tracks[start : start + BATCH])
            except PefxError as error:
                self._told(False, str(error))
            else:
                self._told(True, "")

    def _told(self, reachable: bool, why: str) -> None:
        if reachable != self.reachable:
            what = "the catalog can be read again" if reachable else "the catalog cannot be read"
            tell(what, logging.WARNING, why=why or None)
        self.reachable = reachable

    def _look_at(self, tracks: list[Track]) -> None:
        entries = self._catalog.space.read_many([policy_key(track.revision.policy) for track in tracks])
        for track, entry in zip(tracks, entries, strict=True):
            name = track.revision.policy
            if entry.value == track.record:
                continue
            try:
                if entry.value is None:
                    self._catalog.check_present()
                    raise PefxError(f"policy '{name}' is not in the catalog any more", "unknown_policy")
                policy = checked(self._catalog.space, Policy, entry.value, name)
                check_alive(policy)
                settled = self._follow(track, policy)
            except PefxError as error:
                if error.kind in UNAVAILABLE:
                    raise
                settled = self._trouble(track, error)
            if settled:
                track.record = entry.value

    def _trouble(self, track: Track, error: PefxError) -> bool:
        """What a record led to; whether that was all."""
        if error.retryable:
            return False
        if error.kind in ("retired", "unknown_policy"):
            self._tracks.forget(track.revision.policy)
            tell("not served any more", logging.WARNING, policy=track.revision.policy, why=str(error))
        else:
            self._stays(track, error)
        return True

    @staticmethod
    def _stays(track: Track, error: BaseException) -> None:
        tell("the one before stays", logging.ERROR, revision=track.revision.key, why=str(error))

    def _follow(self, track: Track, policy: Policy) -> bool:
        """Bring the policy to its latest revision, if that is another than at the last look. Whether that is done."""
        track.owner = policy.owner
        latest = policy.aliases.get(LATEST)
        if latest is None or track.latest in (None, latest):
            track.latest = latest
            return True
        revision = self._policies.resolve(policy.name, latest)
        if revision.key == track.revision.key:
            track.latest = latest
            return True
        if self._tracks.readiness.stage(revision) == "exposed":
            self._tracks.select(revision)
        elif not track.asked:
            # Nobody asked since it last changed: its weights would take the place of some that are asked for.
            self._tracks.switch(revision)
        else:
            self._warm(track, revision)
            return False
        self._moved(track, revision)
        return True

    def _moved(self, track: Track, revision: Revision) -> None:
        track.latest = revision.number
        tell("follow", revision=revision.key)

    def _warm(self, track: Track, revision: Revision) -> None:
        """Begin to load the weights of `revision`; it is exposed when they are there."""
        if revision.key in self._moving:
            return
        ready = self._tracks.readiness
        if ready.stage(revision) == "committed":
            self._tracks.register(revision)
        if ready.stage(revision) == "prewarmed":
            self._expose(track, revision)
            return
        warming = ready.prewarm(revision)
        self._moving.add(revision.key)
        warming.add_done_callback(lambda done: self._warmed(track, revision, done))

    def _warmed(self, track: Track, revision: Revision, done: Future[None]) -> None:
        self._moving.discard(revision.key)
        error = done.exception()
        if error is None:
            self._expose(track, revision)
        elif not (isinstance(error, PefxError) and (error.retryable or error.kind in UNAVAILABLE)):
            self._stays(track, error)
            track.latest = revision.number  # not tried again before the next one comes

    def _expose(self, track: Track, revision: Revision) -> None:
        try:
            self._tracks.expose(revision)
        except PefxError as error:  # withdrawn meanwhile
            self._stays(track, error)
        else:
            self._moved(track, revision)
