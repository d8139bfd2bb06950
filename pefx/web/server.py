"""The pages of a catalog on a port of this machine, until a signal ends it."""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pefx.errors import PefxError
from pefx.store.catalog import Catalog
from pefx.web.app import build_app

WAITING = 64  # connections that wait to be accepted


class Server(uvicorn.Server):
    """A server that leaves signals alone: `serve_pages` has its own answer to them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(catalog: Catalog) -> Server:
    """A server of the pages of `catalog`; `run(sockets=[...])` serves."""
    return Server(plain_config(build_app(catalog), lifespan="off", log_level="error"))


def plain_config(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """HTTP and nothing else, which tells nobody what it is; `more` as uvicorn has it."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **more,
    )


def serve_pages(path: str, host: str, port: int) -> int:
    """Serve the catalog at `path`, read-only, until SIGINT or SIGTERM. PefxError where it cannot begin."""
    address = loopback(host)
    catalog = Catalog.open(path, read_only=True)
    with listen(address, port) as bound:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        server = make_server(catalog)
        name = f"[{address}]" if ":" in address else address
        print(f"http://{name}:{bound.getsockname()[1]} shows catalog '{path}', read-only; Ctrl-C ends it", flush=True)
        server.run(sockets=[bound])
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """At once: what only reads leaves nothing half done, and its threads may be in long reads."""
    os._exit(0)


def loopback(host: str) -> str:
    """The address that `host` means, one that only this machine reaches. PefxError for any other."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        if ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise PefxError(
        f"--host {host!r} may be reached by others, and these pages ask nobody for a password: use 127.0.0.1, ::1 or "
        "localhost; from another machine, come through a tunnel (ssh -L 8010:127.0.0.1:8010 ...)"
    )


def listen(address: str, port: int, flag: str = "--port") -> socket.socket:
    """A socket that listens there; port 0: a free one. PefxError where it cannot."""
    if not 0 <= port < 1 << 16:
        raise PefxError(f"{flag} {port} is none: ports are 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Named as TCP, or asyncio would not send small parts at once, and each answer would wait for the one before.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        bound.listen(WAITING)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PefxError(f"port {port} of {address} is in use: choose another one with {flag}, or 0") from error
        raise PefxError(f"port {port} of {address} cannot be listened on: {error.strerror}") from error
    return bound
