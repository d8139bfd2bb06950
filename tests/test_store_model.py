"""The catalog against a plain model of it: whatever is done, in whatever order, both say the same."""

import tempfile
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pefx.errors import PefxError
from pefx.store.archive import Slice, export_tar, import_tar
from pefx.store.audit import audit
from pefx.store.catalog import Catalog
from pefx.store.compaction import compact
from pefx.store.garbage import collect
from pefx.store.lifecycle import branch, drop_alias, expire, give, retag, retire, retire_revision, rollback, set_alias
from pefx.store.records import Revision
from pefx.store.sessions import Wanted, open_sessions
from tests.store_small import BASE, SPEC, adapter, commit, draft, provenance

NAMES = st.sampled_from(["a", "a/b", "ab", "b"])
TAGS = st.sampled_from(["x", "y"])
RUNS = st.sampled_from(["one", "two"])
PLACES = count()


class Model(RuleBasedStateMachine):
    """`policies`: by name its revisions (seed by number, None: collected), aliases, tags, retired or not, and so on.

    "over" are single revisions that were retired, "session" is the newest one's number and run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.place = Path(self.folder.name) / "catalog"
        self.catalog = Catalog.open(self.place, create=True)
        self.policies: dict[str, dict[str, Any]] = {}
        self.seeds = count()

    def alive(self, name: str) -> dict[str, Any] | None:
        policy = self.policies.get(name)
        return None if policy is None or policy["retired"] or policy["expired"] else policy

    def made(self, name: str) -> dict[str, Any]:
        fresh = {
            "seeds": {}, "aliases": {}, "tags": set(), "retired": False, "expired": False, "over": set(), "owner": None,
            "session": (0, ""),
        }  # fmt: skip
        return self.policies.setdefault(name, fresh)

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
        seed, good = next(self.seeds), name not in self.policies or self.alive(name) is not None
        about = provenance(tags=tuple(tags))
        made = self.told(good, lambda: self.catalog.commit(name, adapter=adapter(seed), spec=SPEC, base=BASE, **about))
        if made is not None:
            self.committed(name, made, seed, tags)

    def committed(self, name: str, made: Revision, seed: int, tags: set[str]) -> None:
        policy = self.made(name)
        number = max(policy["seeds"], default=0) + 1
        assert made.number == number
        policy["seeds"][number] = seed
        policy["aliases"]["latest"] = number
        policy["tags"] |= tags

    @rule(names=st.lists(NAMES, min_size=1, max_size=5))
    def commit_many(self, names: list[str]) -> None:
        seeds = [next(self.seeds) for _ in names]
        made: list[Revision] = []
        good = all(name not in self.policies or self.alive(name) for name in names)
        drafts = [draft(name, seed) for name, seed in zip(names, seeds, strict=True)]
        self.told(good, lambda: made.extend(self.catalog.commit_many(drafts)) or True)
        for revision, name, seed in zip(made, names, seeds):  # those before one that cannot be stay
            self.committed(name, revision, seed, set())

    @rule(name=NAMES, run=RUNS)
    def train(self, name: str, run: str) -> None:
        good = name not in self.policies or self.alive(name) is not None
        opened = self.told(good, open_sessions, self.catalog, run, [Wanted(name, BASE, SPEC)])
        if opened is None:
            return
        policy = self.made(name)
        if policy["session"][1] != run:
            policy["session"] = policy["session"][0] + 1, run
        assert (opened[0].number, opened[0].run) == policy["session"]

    @rule(name=NAMES, session=st.integers(1, 4))
    def commit_in_a_session(self, name: str, session: int) -> None:
        policy, seed = self.alive(name), next(self.seeds)
        if name not in self.policies:
            return
        good = policy is not None and policy["session"][0] == session
        made = self.told(good, lambda: commit(self.catalog, name, seed, session=session))
        if made is not None:
            self.committed(name, made, seed, set())

    @rule(source=NAMES, name=NAMES)
    def branch(self, source: str, name: str) -> None:
        policy = self.alive(source)
        number = None if policy is None else policy["aliases"].get("latest")
        if self.told(number is not None and name not in self.policies, branch, self.catalog, source, name) is not None:
            assert policy is not None
            self.made(name)["seeds"] = {1: policy["seeds"][number]}
            self.made(name)["aliases"] = {"latest": 1}

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
            if n < policy["aliases"].get("latest", 0) and seed is not None and n not in policy["over"]
        ]  # fmt: skip
        if self.told(bool(older), rollback, self.catalog, name):
            self.policies[name]["aliases"]["latest"] = max(older)

    @rule(name=NAMES, tag=TAGS)
    def tag(self, name: str, tag: str) -> None:
        if self.told(name in self.policies, retag, self.catalog, name, (tag,)):
            self.policies[name]["tags"].add(tag)

    @rule(name=NAMES, owner=st.sampled_from(["p", "q", None]))
    def give(self, name: str, owner: str | None) -> None:
        if self.told(name in self.policies, give, self.catalog, name, owner):
            self.policies[name]["owner"] = owner

    @rule(name=NAMES, over=st.booleans())
    def expire(self, name: str, over: bool) -> None:
        at = datetime.now(UTC) - timedelta(days=1) if over else None
        if self.told(name in self.policies, expire, self.catalog, name, at):
            self.policies[name]["expired"] = over

    @rule(name=NAMES)
    def retire(self, name: str) -> None:
        policy = self.policies.get(name)
        if self.told(policy is not None and not policy["retired"], retire, self.catalog, name):
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
            there = {number for number, seed in policy["seeds"].items() if seed is not None}
            policy["retired"] |= policy["expired"] and bool(there)
            gone = set(policy["seeds"]) if policy["retired"] else policy["over"] - {max(policy["seeds"], default=0)}
            policy["seeds"] |= dict.fromkeys(gone)
            policy["over"] -= gone

    @rule()
    def reopen(self) -> None:
        self.catalog = Catalog.open(self.place)

    @precondition(lambda self: self.policies)
    @rule(prefix=st.sampled_from(["", "", "a", "b"]))
    def move_house(self, prefix: str) -> None:
        """Everything, or a part, goes through a tar file into another catalog, which takes over."""
        self.place = Path(self.folder.name) / f"catalog-{next(PLACES)}"
        archive = self.place.with_suffix(".tar")
        export_tar(self.catalog, archive, Slice(prefix))
        self.catalog = Catalog.open(self.place, create=True)
        assert import_tar(self.catalog, archive).refused == []
        self.policies = {name: policy for name, policy in self.policies.items() if name.startswith(prefix)}

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
            assert (record.owner, record.session) == (policy["owner"], policy["session"][0])
            served = self.alive(name) is not None and bool(policy["aliases"])
            self.told(served, catalog.serving, name)
            there = {number: seed for number, seed in policy["seeds"].items() if seed is not None}
            log = catalog.log(name)
            assert [revision.number for revision in log] == sorted(there)
            for revision in log:
                weights, wanted = catalog.load(revision), adapter(there[revision.number])
                assert all(np.array_equal(weights[s][f], wanted[s][f]) for s in wanted for f in wanted[s])
        for tag in ("x", "y"):
            wanted_names = sorted(name for name, policy in self.policies.items() if tag in policy["tags"])
            assert [policy.name for policy in catalog.search(tag=tag)] == wanted_names
            for owner in ("p", "q"):
                both = [name for name in wanted_names if self.policies[name]["owner"] == owner]
                assert [policy.name for policy in catalog.search(tag=tag, owner=owner)] == both
        owned = sorted(name for name, policy in self.policies.items() if policy["owner"] == "p")
        assert [policy.name for policy in catalog.search(owner="p")] == owned
        assert audit(catalog).faults == []


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase
