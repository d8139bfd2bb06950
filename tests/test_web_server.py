"""Where pages are served, where they are not, and how a server ends."""

import socket
from contextlib import suppress

import pytest

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.web.server import listen, loopback
from tests.web_catalog import ask, commit, serving


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.1.2.3", "127.1.2.3"), ("::1", "::1"), ("localhost", "127.0.0.1")],
)
def test_this_machine(host: str, address: str) -> None:
    assert loopback(host) == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "example.org", "", "127.0.0.1:80"])
def test_what_others_may_reach_is_refused(host: str) -> None:
    with pytest.raises(PefxError, match=r"use 127\.0\.0\.1, ::1 or localhost"):
        loopback(host)


def test_a_busy_port_is_told() -> None:
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(PefxError, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(PefxError, match=f"--port {port} is none"):
        listen("127.0.0.1", port)


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(PefxError, match="cannot be listened on"):
        listen("203.0.113.1", 0)


def test_what_is_no_request_harms_nothing(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    commit(catalog, "a", 1)
    with serving(catalog) as address:
        host, port = address.removeprefix("http://").split(":")
        for said in (
            b"\0\xff\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"GET ",
        ):
            connection = socket.create_connection((host, int(port)), timeout=10)
            with connection, suppress(OSError):  # it may hang up before it has heard all
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                assert b"Traceback" not in connection.recv(100_000)
        assert ask(f"{address}/policy/{'a' * 5000}").status == 400
        assert ask(f"{address}/policy/a").status == 200
    assert "Traceback" not in capfd.readouterr().err
