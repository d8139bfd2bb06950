"""The description is true: what it allows is understood, and all answers are as it says."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pefx.http.app import DOCUMENT, OPERATIONS
from tests.http_fakes import BASE, Live, live, small_catalog

SCHEMA = schemathesis.openapi.from_dict(json.loads(DOCUMENT))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    catalog = small_catalog(tmp_path_factory.mktemp("openapi"), "ann")
    with live(catalog=catalog, timeout=2.0) as started:
        yield started


# The server lives in this process: what its threads do to the random module is not the strategies' doing.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@SCHEMA.parametrize()
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_every_operation(case: schemathesis.Case, server: Live) -> None:
    allowed = case.meta is not None and case.meta.generation.mode.is_positive
    if allowed and isinstance(case.body, dict) and "model" in case.body:  # else hardly any would be one
        case.body["model"] = "ann"
    if isinstance(case.body, dict):
        case.body.pop("timeout", None)  # a short one is answered with 504, as it should be
    # Beyond a schema are: tokens that the base has, fields that go together, 1.0 where 1 is meant. They are refused.
    case.call_and_validate(base_url=server.address, excluded_checks=[positive_data_acceptance])


def test_the_document(server: Live) -> None:
    found = server.client.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert set(found["paths"]) == {operation.path for operation in OPERATIONS}
    schemas = found["components"]["schemas"]
    assert schemas["ChatBody"]["additionalProperties"] is False
    assert schemas["ChatBody"]["required"] == ["model", "messages"]
    assert {"401", "429", "503"} <= set(found["paths"]["/v1/completions"]["post"]["responses"])
    assert BASE not in json.dumps(found)


def test_nothing_of_this_machine_is_in_it() -> None:
    assert str(Path.home()) not in DOCUMENT.decode()
