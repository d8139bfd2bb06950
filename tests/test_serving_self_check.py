"""pefx.serving.self_check: an answer whose bits are not those of a prompt is found."""

from pefx.serving.engine import Way
from pefx.serving.requests import Request
from tests.serving_fakes import FakeCatalog, FakeDevice, make_engine, revision


class Drifting(FakeDevice):
    """Some of its log-probabilities are others when they are computed as a prompt's."""

    drift = 0.0

    def run(self, plan):
        found, routes = super().run(plan)
        scored = [row.target >= 0 for row in plan.wanted]
        drifted = [x._replace(logprob=x.logprob - self.drift) if s else x for x, s in zip(found, scored, strict=True)]
        return drifted, routes


def run(device: FakeDevice, every: int) -> tuple[int, int]:
    revisions = FakeCatalog(revision("ann"), revision("bob"))
    engine = make_engine(revisions, device, how=Way(check_every=every))
    for handle in range(8):
        policy = ("ann", "bob", None)[handle % 3]
        asked = Request(f"{handle}", (1, 2, 3), policy=policy, max_tokens=9, ignore_eos=True)
        engine.submit(handle, asked, None if policy is None else revisions.serving(policy))
    rows = []
    while not engine.idle:
        rows += engine.step()
        engine.wait(60.0)
    assert sorted(answered.handle for answered in rows) == list(range(8))
    state = engine.state()
    return state.audited, state.mismatches


def test_equal_bits_are_counted_as_such():
    assert run(Drifting(page_size=4), 1) == (8, 0)
    assert run(Drifting(page_size=4), 3) == (2, 0)
    assert run(Drifting(page_size=4), 0) == (0, 0)


def test_other_bits_are_found():
    device = Drifting(page_size=4)
    device.drift = 2.0**-20
    assert run(device, 2) == (4, 4)


def test_what_does_not_fit_the_pool_again_is_passed_over():
    device = Drifting(page_size=4)
    engine = make_engine(device=device, how=Way(check_every=1), pages=3)
    engine.submit(0, Request("a", (1,) * 8, max_tokens=5, ignore_eos=True), None)
    while not engine.idle:
        engine.step()
    assert engine.state().audited == 0
