"""Keys: what a file of them may hold, that it is read again, and that only hashes are kept."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http import keys as module
from pefx.http.keys import EVERYONE, Key, Keys, changing, hashed, new_key, read_keys


def made(path: Path, name: str = "ann", **fields: Any) -> str:
    """Add a key to the file; returns its plain text."""
    with changing(path) as keys:
        key, plain = new_key(lambda id, hash: Key(id=id, name=name, hash=hash, created="", **fields))
        keys.keys.append(key)
    return plain


def kind_of(keys: Keys, plain: str | None) -> str:
    with pytest.raises(PefxError) as caught:
        keys.find(plain)
    return caught.value.kind


def test_only_the_hash_is_kept_and_only_for_the_owner_to_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    plain = made(path)
    assert plain.startswith("pefx-")
    assert len(plain) > 45  # 256 bits
    assert plain not in path.read_text()
    assert hashed(plain) in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Keys(path).find(plain).name == "ann"


@pytest.mark.parametrize("plain", [None, "", "pefx-", "pefx-" + "A" * 43, "é" * 10, "\ud800"])
def test_what_is_no_key(tmp_path: Path, plain: str | None) -> None:
    made(tmp_path / "keys.json")
    assert kind_of(Keys(tmp_path / "keys.json"), plain) == "no_key"


def test_without_a_file_everybody_may_do_everything() -> None:
    keys = Keys(None)
    assert keys.open
    assert keys.find(None) is EVERYONE
    assert EVERYONE.names("anything")
    assert EVERYONE.admin


def test_what_names_mean() -> None:
    key = Key(id="1", name="a", hash="", created="", policies=("users/ann", "work/*"))
    assert key.names("users/ann")
    assert key.names("work/x")
    assert not key.names("users/ann2")
    assert not key.names("work")
    assert not key.admin
    assert not key.keeps("users/ann")
    keeper = Key(id="1", name="a", hash="", created="", policies=("work/*",), memories=("ann/*",))
    assert (keeper.keeps("ann/notes"), keeper.names("ann/notes"), keeper.keeps("work/x")) == (True, True, False)


def test_the_file_is_read_again_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK", -1)
    path = tmp_path / "keys.json"
    one = made(path)
    keys = Keys(path)
    two = made(path, "bob")
    assert keys.find(two).name == "bob"
    whole = path.read_bytes()
    for broken in (b"", b"{", b'{"keys": [{"id": 1}]}', whole[: len(whole) // 2]):
        path.write_bytes(broken)
        assert keys.find(one).name == "ann"
    assert "the keys stay as they were" in caplog.text
    path.unlink()
    assert keys.find(one).name == "ann"
    path.write_bytes(whole)
    with changing(path) as found:
        found.keys = [key for key in found.keys if key.name != "ann"]
    assert kind_of(keys, one) == "no_key"
    assert keys.find(two).name == "bob"


def test_a_server_does_not_begin_with_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(PefxError, match="cannot be read"):
        Keys(path)
    for text in ("[]", '{"keys": [{}]}', '{"kes": []}'):
        path.write_text(text)
        with pytest.raises(PefxError, match="not a file of keys"):
            Keys(path)
    key = {"id": "1", "name": "a", "hash": "h", "created": ""}
    path.write_text(json.dumps({"keys": [key, {**key, "hash": "g"}]}))
    with pytest.raises(PefxError, match="two keys have the same id"):
        read_keys(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PefxError, match="cannot be written"):
        made(tmp_path / "keys.json")
