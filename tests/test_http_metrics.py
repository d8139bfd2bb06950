"""Numbers for Prometheus."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.http_fakes import Live, live, small_catalog

ROOT = Path(__file__).resolve().parent.parent


def numbers(server: Live) -> dict[str, float]:
    text = server.client.get("/metrics").text
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_done(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, "ann")) as server:
        server.complete(max_tokens=5, ignore_eos=True, n=2)
        server.complete(model="ann", max_tokens=5, ignore_eos=True)
        server.complete(model="nobody")
        server.until(lambda: server.api.service.state.tokens == 15)
        found = numbers(server)
    assert found["pefx_requests_total{/v1/completions}{200}"] == 2
    assert found["pefx_requests_total{/v1/completions}{404}"] == 1
    assert found["pefx_answers_total{length}"] == 3
    assert found["pefx_adapters_total{base}"] == 1
    assert found["pefx_adapters_total{cold}"] == 1
    assert found["pefx_first_token_seconds_count"] == 2
    assert found["pefx_output_token_seconds_count"] == 3
    assert found["pefx_generated_tokens_total"] == 15
    assert found["pefx_prompt_tokens_total"] == 6
    assert found["pefx_seats"] == 64
    assert found["pefx_engine_up"] == 1
    assert found["pefx_answers_in_flight"] == 0


def test_no_label_names_a_policy_or_a_key(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, "somebody")) as server:
        server.complete(model="somebody")
        server.client.get("/v1/models/somebody")
        server.client.get("/an/address/that/is/none")
        text = server.client.get("/metrics").text
    assert "somebody" not in text
    assert "address" not in text
    assert 'endpoint="other"' in text


def test_an_engine_that_died(capfd) -> None:
    with live() as server:
        server.engine.dies = RuntimeError("gone")
        server.complete()
        assert numbers(server)["pefx_engine_up"] == 0
    capfd.readouterr()


def test_the_dashboard_shows_what_there_is(tmp_path: Path) -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"pefx_\w+", target["expr"])
    }
    with live(catalog=small_catalog(tmp_path, "ann")) as server:
        server.complete(model="ann", max_tokens=3, ignore_eos=True)
        server.until(lambda: server.api.service.adapters is not None)
        there = {name.split("{")[0] for name in numbers(server)}
    assert asked <= there
    unshown = {name for name in there - asked if not name.endswith(("_created", "_count", "_sum"))}
    assert unshown == {"pefx_host_loads_total", "pefx_request_seconds_bucket"}
