"""What a policy's plain name stands for on a server, and which weights wait for it."""

from concurrent.futures import Future

import pytest

from pefx.errors import PefxError
from pefx.http.tracks import Tracks
from pefx.store.readiness import Readiness
from pefx.store.records import Revision
from pefx.store.tiers import Tiers
from tests.serving_fakes import FakeCatalog, revision

ONE, TWO, THREE = (revision("ann", number, blob_bytes=8) for number in (1, 2, 3))
CATALOG = FakeCatalog(ONE, TWO, THREE)


def tracks(most: int = 4) -> Tracks:
    return Tracks(Readiness(Tiers(CATALOG.load, 1 << 20), lambda revision: None), most)


def exposed(made: Tracks, revision: Revision) -> None:
    made.register(revision)
    warming: Future[None] = made.readiness.prewarm(revision)
    warming.result(10)
    made.expose(revision)


def kind_of(call, *arguments) -> str:
    with pytest.raises(PefxError) as caught:
        call(*arguments)
    return caught.value.kind


def test_the_first_to_begin_decides() -> None:
    made = tracks()
    assert made.ask("ann") is None
    assert made.begin(ONE, "owner") is ONE
    assert made.begin(TWO, "owner") is ONE
    assert made.ask("ann") is ONE
    assert made.stage(ONE) == "exposed"
    assert made.stage(TWO) == "committed"


def test_exposed_the_next_takes_its_place_and_the_one_before_stays() -> None:
    made = tracks()
    made.begin(ONE, None)
    exposed(made, TWO)
    assert made.ask("ann") is TWO
    exposed(made, THREE)
    assert made.readiness.resolve("ann", 2) is TWO
    made.select(TWO)
    assert made.ask("ann") is TWO
    assert made.readiness.resolve("ann", 3) is THREE


def test_only_two_stay_exposed() -> None:
    made = tracks()
    for one in (ONE, TWO, THREE):
        exposed(made, one)
    assert [made.readiness.stage(one) for one in (ONE, TWO, THREE)] == ["committed", "exposed", "exposed"]


def test_switched_without_weights() -> None:
    made = tracks()
    exposed(made, ONE)
    made.switch(TWO)
    track = made.get("ann")
    assert track is not None
    assert not track.asked
    assert made.readiness.stage(ONE) == "committed"
    assert made.ask("ann") is TWO
    assert track.asked


def test_withdrawn_it_is_not_served_before_it_is_registered_again() -> None:
    made = tracks()
    made.begin(ONE, None)
    made.withdraw(ONE)
    assert made.ask("ann") is None
    assert kind_of(made.check, ONE) == "not_exposed"
    assert made.check(TWO) is TWO
    made.register(ONE)
    assert made.check(ONE) is ONE


def test_those_longest_without_a_request_are_forgotten_and_their_weights_too() -> None:
    made = tracks(most=2)
    exposed(made, ONE)
    made.begin(revision("bob"), None)
    made.ask("ann")
    made.begin(revision("cyd"), None)
    assert made.get("bob") is None
    made.begin(revision("dan"), None)
    assert made.get("ann") is None
    assert made.readiness.stage(ONE) == "committed"
    assert len(made) == 2


def test_what_was_exposed_elsewhere_is_tracked() -> None:
    made = tracks()
    made.readiness.register(ONE)
    made.readiness.prewarm(ONE).result(10)
    made.readiness.expose(ONE)
    assert made.ask("ann") is ONE
    assert made.get("ann") is not None
