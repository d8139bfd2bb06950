"""The catalog against a plain model of it: whatever is done, in whatever order, both say the same."""

import tempfile
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pefx.errors import PefxError
from pefx.store.archive import export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, drop_alias, retag, retire, retire_revision, rollback, set_alias
from tests.store_small import BASE, SPEC, adapter, provenance

NAMES = st.sampled_from(["a", "a/b", "ab", "b"])
TAGS = st.sampled_from(["x", "y"])
PLACES = count()


class Model(RuleBasedStateMachine):
    """`policies`: by name its revisions (seed by number, None: collected), aliases, tags, retired or not."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.place = Path(self.folder.name) / "catalog"
        self.catalog = Catalog.open(self.place, create=True)
        self.policies: dict[str, dict[str, Any]] = {}
        self.seeds = count()

    def alive(self, name: str) -> dict[str, Any] | None:
        policy = self.policies.get(name)
        return None if policy is None or policy["retired"] else policy

    def told(self, expected: bool, call, *arguments: Any) -> Any:
        """`call` succeeds exactly when it is expected to."""
        try:
            found = call(*arguments)
        except PefxError:
            assert not expected
            return None
        assert expected
        return found

    @rule(name=NAMES, tags=st.sets(TAGS))
    def commit(self, name: str, tags: set[str]) -> None:
        seed, retired = next(self.seeds), name in self.policies and self.policies[name]["retired"]
        about = provenance(tags=tuple(tags))
        made = self.told(
            not retired, lambda: self.catalog.commit(name, adapter=adapter(seed), spec=SPEC, base=BASE, **about)
        )
        if made is None:
            return
        policy = self.policies.setdefault(
            name, {"seeds": {}, "aliases": {}, "tags": set(), "retired": False, "over": set()}
        )
        number = max(policy["seeds"], default=0) + 1
        assert made.number == number
        policy["seeds"][number] = seed
        policy["aliases"]["latest"] = number
        policy["tags"] |= tags

    @rule(source=NAMES, name=NAMES)
    def branch(self, source: str, name: str) -> None:
        policy = self.alive(source)
        number = None if policy is None else policy["aliases"]["latest"]
        if self.told(policy is not None and name not in self.policies, branch, self.catalog, source, name) is not None:
            assert policy is not None
            self.policies[name] = {
                "seeds": {1: policy["seeds"][number]}, "aliases": {"latest": 1}, "tags": set(), "retired": False,
                "over": set(),
            }  # fmt: skip

    @rule(name=NAMES, number=st.integers(1, 4))
    def alias(self, name: str, number: int) -> None:
        policy = self.alive(name)
        good = policy is not None and policy["seeds"].get(number) is not None and number not in policy["over"]
        if self.told(good, set_alias, self.catalog, name, "prod", number):
            self.policies[name]["aliases"]["prod"] = number

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        policy = self.policies.get(name)
        if self.told(policy is not None and "prod" in policy["aliases"], drop_alias, self.catalog, name, "prod"):
            del self.policies[name]["aliases"]["prod"]

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        policy = self.alive(name)
        older = [] if policy is None else [
            n for n, seed in policy["seeds"].items()
            if n < policy["aliases"]["latest"] and seed is not None and n not in policy["over"]
        ]  # fmt: skip
        if self.told(bool(older), rollback, self.catalog, name):
            self.policies[name]["aliases"]["latest"] = max(older)

    @rule(name=NAMES, tag=TAGS)
    def tag(self, name: str, tag: str) -> None:
        if self.told(name in self.policies, retag, self.catalog, name, (tag,)):
            self.policies[name]["tags"].add(tag)

    @rule(name=NAMES)
    def retire(self, name: str) -> None:
        if self.told(self.alive(name) is not None, retire, self.catalog, name):
            self.policies[name]["retired"] = True

    @rule(name=NAMES, number=st.integers(1, 4))
    def retire_one(self, name: str, number: int) -> None:
        policy = self.policies.get(name)
        good = (
            policy is not None
            and policy["seeds"].get(number) is not None
            and number not in policy["aliases"].values()
            and number not in policy["over"]
        )
        if self.told(good, retire_revision, self.catalog, name, number):
            self.policies[name]["over"].add(number)

    @rule()
    def collect(self) -> None:
        collect(self.catalog, timedelta(0))
        for policy in self.policies.values():
            gone = set(policy["seeds"]) if policy["retired"] else policy["over"] - {max(policy["seeds"])}
            policy["seeds"] |= dict.fromkeys(gone)
            policy["over"] -= gone

    @rule()
    def reopen(self) -> None:
        self.catalog = Catalog.open(self.place)

    @precondition(lambda self: self.policies)
    @rule()
    def move_house(self) -> None:
        """Everything goes through a tar file into another catalog, which takes over."""
        self.place = Path(self.folder.name) / f"catalog-{next(PLACES)}"
        archive = self.place.with_suffix(".tar")
        export_tar(self.catalog, archive)
        self.catalog = Catalog.open(self.place, create=True)
        assert import_tar(self.catalog, archive).refused == []

    @rule()
    def compact(self) -> None:
        compact(self.catalog)

    def teardown(self) -> None:
        self.folder.cleanup()

    @invariant()
    def both_say_the_same(self) -> None:
        catalog = self.catalog
        assert list(catalog.policies()) == sorted(self.policies)
        for name, policy in self.policies.items():
            record = catalog.policy(name)
            assert record.aliases == policy["aliases"]
            assert (set(record.tags), record.state == "retired") == (policy["tags"], policy["retired"])
            there = {number: seed for number, seed in policy["seeds"].items() if seed is not None}
            log = catalog.log(name)
            assert [revision.number for revision in log] == sorted(there)
            for revision in log:
                weights, wanted = catalog.load(revision), adapter(there[revision.number])
                assert all(np.array_equal(weights[s][f], wanted[s][f]) for s in wanted for f in wanted[s])
        for tag in ("x", "y"):
            wanted_names = sorted(name for name, policy in self.policies.items() if tag in policy["tags"])
            assert [policy.name for policy in catalog.search(tag=tag)] == wanted_names
        assert audit(catalog).faults == []


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase
