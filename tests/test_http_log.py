"""Lines of the log."""

import json
import logging

import pytest

from pefx.http.log import LOG, tell, to_stderr


def test_a_line_is_json_and_leaves_out_what_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pefx.http")
    tell("done", model="a\nb", tokens=0, error=None, stream=False)
    (record,) = caplog.records
    row = json.loads(record.getMessage())
    assert "\n" not in record.getMessage()
    assert row.pop("time").endswith("+00:00")
    assert row == {"event": "done", "model": "a\nb", "tokens": 0}


def test_on_the_error_stream_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOG, name, getattr(LOG, name) if name != "handlers" else [])
    to_stderr()
    tell("begun")
    assert json.loads(capsys.readouterr().err)["event"] == "begun"
