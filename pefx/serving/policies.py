"""From the policy a request names to a revision that may be served here: the right one, or an error (law 6)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from pefx.adapters.methods.recipe import needs_room, recipe_of
from pefx.config import AdapterSpec
from pefx.errors import PefxError
from pefx.store.records import Revision

# The catalog, not the revision, is the trouble: no answer to a request, but the end of a run that can go on later.
UNAVAILABLE = frozenset({"storage", "no_permission", "no_catalog", "closed"})

Weights = dict[str, dict[str, np.ndarray]]
Found = TypeVar("Found")


@runtime_checkable
class Revisions(Protocol):
    """What is asked of a catalog."""

    def serving(self, policy: str, which: int | str | None = None) -> Revision: ...

    def load(self, revision: Revision) -> Weights: ...

    def check_present(self) -> None: ...


class Policies:
    """The policies of `catalog` (None: there are none) as far as they fit the base `digest` and a bank of `bank`, which
    has room for other methods than LoRA where an adapter is like one of `others`.

    `agree` gives every process what one of them found: the catalog may grow while they look.
    """

    def __init__(
        self,
        catalog: Revisions | None,
        digest: str,
        bank: AdapterSpec,
        agree: Callable[[str], str] | None = None,
        others: Sequence[AdapterSpec] = (),
    ):
        self._catalog, self._digest, self._bank, self._agree = catalog, digest, bank, agree
        self._others = others

    def resolve(self, policy: str, number: int | str | None) -> Revision:
        """The revision to serve; `number` may be an alias, None is the latest.

        Raises PefxError of kind "unknown_policy", "unknown_revision", "retired", "wrong_base", "wrong_rank",
        "wrong_target" or "wrong_form". What is not served is never replaced by the base or by another revision.
        """
        if self._agree is None:
            return self._find(policy, number)
        found = json.loads(self._agree(json.dumps(self._found(policy, number))))
        if "number" in found:
            return self._find(policy, found["number"])
        raise PefxError(found["message"], found["kind"])

    def _found(self, policy: str, number: int | str | None) -> dict[str, Any]:
        """What `resolve` gives, as JSON."""
        try:
            return {"number": self._find(policy, number).number}
        except PefxError as error:
            return {"kind": error.kind, "message": str(error)}

    def _find(self, policy: str, number: int | str | None) -> Revision:
        if self._catalog is None:
            raise PefxError(f"policy '{policy}' is unknown: there is no catalog here, only a base", "unknown_policy")
        catalog = self._catalog
        revision = self._look(lambda: catalog.serving(policy, number))
        if revision.policy != policy or (isinstance(number, int) and number != revision.number):
            raise PefxError(f"policy '{policy}': the catalog answered with {revision.key}", "unknown_revision")
        self.check(revision)
        return revision

    def over(self, state: Revision) -> Revision:
        """The revision whose weights serve what begins with `state`. Raises PefxError as `resolve`, or (kind
        "wrong_spec") where it is not what the state says.
        """
        policy, _, number = state.spec.over.rpartition("@")
        found = self.resolve(policy, int(number) if number.isdigit() else number)
        if found.spec != replace(state.spec, method="delta_mem", over=""):
            raise PefxError(f"state {state.key} is over {found.key}, whose memory is another", "wrong_spec")
        return found

    def load(self, revision: Revision) -> Weights:
        """Its weights, their hash verified."""
        if self._catalog is None:
            raise PefxError(f"there is no catalog to load {revision.key} from", "unknown_policy")
        catalog = self._catalog
        return self._look(lambda: catalog.load(revision))

    def _look(self, look: Callable[[], Found]) -> Found:
        """What `look` finds in the catalog. One that is gone reads as empty: then that is the error."""
        assert self._catalog is not None
        try:
            return look()
        except PefxError:
            self._catalog.check_present()
            return look()  # it may have come back only for the check

    def agree_on_load(self, revision: Revision, error: PefxError | None) -> PefxError | None:
        """What the load of `revision` came to on the process that all follow; `error` is what it came to here.

        Raises PefxError (kind "storage") if it failed here alone: this process cannot do what the others will.
        """
        if self._agree is None:
            return error
        told = None if error is None else {"kind": error.kind, "message": str(error)}
        found = json.loads(self._agree(json.dumps(told)))
        if found is not None:
            return PefxError(found["message"], found["kind"])
        if error is not None:
            message = f"revision {revision.key} was loaded by another process of this job and not by this one: {error}"
            raise PefxError(message, "storage") from error
        return None

    def check(self, revision: Revision) -> None:
        """Raise PefxError, of a kind that `resolve` names, unless `revision` can be served here."""
        spec, bank, name = revision.spec, self._bank, f"revision {revision.key}"
        if revision.base != self._digest:
            raise PefxError(f"{name} belongs to base {revision.base}, this server has {self._digest}", "wrong_base")
        if spec.method in MEMORIES:
            if not any(_remembers(spec, other) for other in self._others):
                told = f"has a memory of {spec.states} states of rank {spec.rank}"
                raise PefxError(f"{name} {told}, for which the bank has no room (others)", "wrong_form")
            return
        if spec.rank > bank.rank:
            raise PefxError(f"{name} has rank {spec.rank}, the bank holds at most {bank.rank} (max_rank)", "wrong_rank")
        extra = sorted(set(spec.targets) - set(bank.targets))
        if extra:
            raise PefxError(f"{name} adapts {', '.join(extra)}, which the bank does not hold (targets)", "wrong_target")
        if needs_room(spec) and not any(_is_like(spec, other) for other in self._others):
            message = f"{name} is of method '{spec.method}' (rank {spec.rank}), which the bank does not hold (others)"
            raise PefxError(message, "wrong_form")
        of_experts = any(target.startswith("experts.") for target in spec.targets)
        if of_experts and spec.expert_form != bank.expert_form:
            message = f"{name} has {spec.expert_form} experts, the bank holds {bank.expert_form} (expert_form)"
            raise PefxError(message, "wrong_form")


MEMORIES = ("delta_mem", "delta_state")


def _remembers(spec: AdapterSpec, other: AdapterSpec) -> bool:
    """Whether a bank that was made for `other` holds memories of `spec`: as large ones, not more of them."""
    return other.method == "delta_mem" and spec.rank == other.rank and spec.states <= other.states


def _is_like(spec: AdapterSpec, other: AdapterSpec) -> bool:
    """Whether a bank that was made for `other` holds an adapter of `spec`."""
    same = (spec.method, recipe_of(spec)) == (other.method, recipe_of(other))
    return same and set(spec.targets) <= set(other.targets)
