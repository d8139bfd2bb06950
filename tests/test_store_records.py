"""Records name themselves, and say which states may follow which."""

from pefx.store.records import POLICY_STATES, SESSION_STATES
from tests.test_store_encoding import OTHERS, REVISION


def test_key_names_policy_and_number() -> None:
    assert REVISION.key == "users/alice@3"
    assert [other.key for other in OTHERS] == ["users/alice@2", "users/alice@3", "users/alice@3"]


def test_states_lead_to_states_and_the_last_to_none() -> None:
    for table in (POLICY_STATES, SESSION_STATES):
        assert all(set(following) <= set(table) for following in table.values())
    assert POLICY_STATES["retired"] == SESSION_STATES["closed"] == ()
