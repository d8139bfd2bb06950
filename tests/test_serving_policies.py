"""pefx.serving.policies: the revision that was asked for, if this base and bank can hold it."""

from dataclasses import replace

import pytest

from pefx.errors import PefxError
from pefx.serving.policies import Policies
from tests.serving_fakes import BASE, SPEC, FakeCatalog, revision


def test_latest_and_named_revisions():
    catalog = FakeCatalog(revision("a", 1), revision("a", 2))
    policies = Policies(catalog, BASE, SPEC)
    assert policies.resolve("a", None).number == 2
    assert policies.resolve("a", 1).number == 1
    assert list(policies.load(policies.resolve("a", 1))["key"]) == ["a@1"]


def test_smaller_spec_fits():
    small = replace(SPEC, rank=1, targets=("q_proj",), expert_form="shared_hidden")
    assert Policies(FakeCatalog(revision("a", spec=small)), BASE, SPEC).resolve("a", None).spec == small


@pytest.mark.parametrize(
    ("changes", "kind", "part"),
    [
        ({"base": "sha256:" + "b" * 64}, "wrong_base", "belongs to base"),
        ({"spec": replace(SPEC, rank=5)}, "wrong_rank", "rank 5.*at most 4"),
        ({"spec": replace(SPEC, targets=("q_proj", "k_proj"))}, "wrong_target", "k_proj"),
        ({"spec": replace(SPEC, expert_form="shared_hidden")}, "wrong_form", "shared_hidden"),
    ],
)
def test_what_does_not_fit_is_refused(changes, kind: str, part: str):
    with pytest.raises(PefxError, match=part) as caught:
        Policies(FakeCatalog(revision("a", **changes)), BASE, SPEC).resolve("a", None)
    assert caught.value.kind == kind


def test_catalog_that_answers_with_another_revision_is_caught():
    class Confused(FakeCatalog):
        def serving(self, policy: str, which: int | str | None = None):
            return revision("b", 9)

    for policy, number in (("a", None), ("b", 1)):
        with pytest.raises(PefxError, match="answered with b@9"):
            Policies(Confused(), BASE, SPEC).resolve(policy, number)


def test_no_catalog_knows_no_policy():
    with pytest.raises(PefxError, match="no catalog") as caught:
        Policies(None, BASE, SPEC).resolve("a", None)
    assert caught.value.kind == "unknown_policy"


def test_processes_serve_what_one_of_them_found():
    """The catalog grows between their looks."""
    told = []

    def say(text: str) -> str:
        told.append(text)
        return text

    asked = [("a", None), ("nobody", None)]
    first = Policies(FakeCatalog(revision("a", 1)), BASE, SPEC, say)
    assert first.resolve("a", None).number == 1
    with pytest.raises(PefxError, match="nobody") as there:
        first.resolve("nobody", None)
    later = FakeCatalog(revision("a", 1), revision("a", 2), revision("nobody", 1))
    second = Policies(later, BASE, SPEC, lambda _: told.pop(0))
    assert second.resolve(*asked[0]).number == 1
    with pytest.raises(PefxError) as here:
        second.resolve(*asked[1])
    assert (str(here.value), here.value.kind) == (str(there.value), there.value.kind)


def test_a_load_comes_to_the_same_on_all_processes():
    here, damaged = revision("a"), PefxError("a@1 is damaged", "damaged")
    alone = Policies(FakeCatalog(here), BASE, SPEC)
    assert alone.agree_on_load(here, damaged) is damaged
    assert alone.agree_on_load(here, None) is None
    told: list[str] = []
    first = Policies(FakeCatalog(here), BASE, SPEC, lambda text: told.append(text) or text)
    assert str(first.agree_on_load(here, damaged)) == "a@1 is damaged"
    assert first.agree_on_load(here, None) is None
    second = Policies(FakeCatalog(here), BASE, SPEC, lambda _: told[0])
    for found in (damaged, None):  # loaded or not: it follows
        error = second.agree_on_load(here, found)
        assert error is not None
        assert (str(error), error.kind) == ("a@1 is damaged", "damaged")
    third = Policies(FakeCatalog(here), BASE, SPEC, lambda _: told[1])
    assert third.agree_on_load(here, None) is None
    with pytest.raises(PefxError, match="a@1 was loaded by another process of this job and not by this one") as caught:
        third.agree_on_load(here, damaged)
    assert caught.value.kind == "storage"


def test_a_catalog_that_is_gone_is_not_taken_for_an_empty_one():
    """As a lost mount: what is not there reads as absent or damaged."""

    class Lost(FakeCatalog):
        def serving(self, policy: str, which: int | str | None = None):
            raise PefxError(f"policy '{policy}' is not in the catalog", "unknown_policy")

        def load(self, revision):
            raise PefxError("its weights are missing", "damaged")

    catalog = Lost(revision("a"))
    policies = Policies(catalog, BASE, SPEC)
    for gone, kinds in ((True, ["storage", "storage"]), (False, ["unknown_policy", "damaged"])):
        catalog.gone = gone
        found = []
        for call in (lambda: policies.resolve("a", None), lambda: policies.load(revision("a"))):
            with pytest.raises(PefxError) as caught:
                call()
            found.append(caught.value.kind)
        assert found == kinds


def test_a_catalog_that_comes_back_is_asked_again():
    class Blinking(FakeCatalog):
        looks = 0

        def serving(self, policy: str, which: int | str | None = None):
            self.looks += 1
            if self.looks == 1:
                raise PefxError(f"policy '{policy}' is not in the catalog", "unknown_policy")
            return super().serving(policy, which)

    assert Policies(Blinking(revision("a")), BASE, SPEC).resolve("a", None).number == 1
