"""`pefx keys`: made, listed, taken back."""

import json
import stat
from pathlib import Path
from typing import Annotated, Any

import pytest
from tyro.conf import arg

from pefx.commands.keys import Action
from pefx.errors import PefxError
from pefx.http.keys import Keys
from pefx.settings import parse


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    action: Any = parse(Annotated[Action, arg(name="")], list(words), prog="pefx keys")
    assert action.run() == 0
    return capsys.readouterr().out


def test_made_listed_and_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "keys.json"
    words = (
        "--name",
        "ann",
        "--policies",
        "users/ann",
        "work/*",
        "--memories",
        "ann/*",
        "--no-base",
        "--tokens-per-minute",
        "1000",
    )
    plain, told = run(capsys, "create", str(path), *words).splitlines()
    assert "not shown again" in told
    key = Keys(path).find(plain)
    assert (key.name, key.policies, key.base, key.admin) == ("ann", ("users/ann", "work/*"), False, False)
    assert key.memories == ("ann/*",)
    assert (key.tokens_per_minute, key.requests_per_minute) == (1000, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = json.loads(run(capsys, "create", str(path), "--name", "root", "--admin", "--json"))
    assert Keys(path).find(made["key"]).admin
    table = run(capsys, "list", str(path))
    assert "ann" in table
    assert "administer" in table
    assert "keeps" in table
    listed = json.loads(run(capsys, "list", str(path), "--json"))
    assert [row["name"] for row in listed] == ["ann", "root"]
    assert key.hash not in table + json.dumps(listed)
    assert "is not taken any more" in run(capsys, "revoke", str(path), key.id)
    with pytest.raises(PefxError, match="not known here"):
        Keys(path).find(plain)
    assert json.loads(run(capsys, "revoke", str(path), made["id"], "--json"))["name"] == "root"
    assert json.loads(run(capsys, "list", str(path), "--json")) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--name", "a b"), "name 'a b' is not allowed"),
        (("--name", "a", "--policies", "a b"), "policy name 'a b' is not allowed"),
        (("--name", "a", "--policies", "a*b*"), "stands at the end"),
        (("--name", "a", "--memories", "*b*"), "--memories '*b*': '*' stands at the end"),
        (("--name", "a", "--owners", "a b"), "owner 'a b' is not allowed"),
        (("--name", "a", "--concurrent", "0"), "--concurrent 0: must be at least 1"),
        (("--name", "a", "--priority", "101"), "--priority 101"),
    ],
)
def test_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str) -> None:
    with pytest.raises(PefxError) as caught:
        run(capsys, "create", str(tmp_path / "keys.json"), *words)
    assert told in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_key_or_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PefxError, match="cannot be read"):
        run(capsys, "revoke", str(tmp_path / "keys.json"), "1")
    assert not list(tmp_path.iterdir())
    run(capsys, "create", str(tmp_path / "keys.json"), "--name", "a")
    with pytest.raises(PefxError, match="no key with the id '1'"):
        run(capsys, "revoke", str(tmp_path / "keys.json"), "1")
