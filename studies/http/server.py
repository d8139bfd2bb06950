"""`serve.py` over HTTP as a process of its own: started, looked at, and ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from studies.http.client import Connection
from studies.programs.commands import ROOT, environment

SAMPLE = re.compile(r"^(?P<name>\w+)(?P<labels>\{[^}]*\})? (?P<value>\S+)", re.MULTILINE)
START = 300.0  # seconds that a start may take


@dataclass(frozen=True)
class Server:
    """A server that runs, and where its log goes."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log: Path

    def connection(self, limit: float = 300.0) -> Connection:
        return Connection(self.host, self.port, limit)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def resident_mb(self) -> float:
        """The memory that the process has in use, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    async def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name and labels as they are written."""
        connection = self.connection()
        try:
            text = (await connection.get("/metrics")).body.decode()
        finally:
            connection.close()
        return {found["name"] + (found["labels"] or ""): float(found["value"]) for found in SAMPLE.finditer(text)}


@contextmanager
def serving(config: Path, log: Path, *options: str) -> Iterator[Server]:
    """A server of `config` on a free port, with `options` of its command line. It is told to end at the end.

    Raises RuntimeError where it does not start.
    """
    command = [sys.executable, "serve.py", str(config), "--http", "127.0.0.1:0", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=file)
    try:
        host, port = _address(process, log)
        yield Server(process, host, port, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    """Where it listens, which it prints once it does."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    end, said = time.monotonic() + START, b""
    while time.monotonic() < end and process.poll() is None:
        said += process.stdout.read() or b""
        if found := re.search(r"http://([\d.]+):(\d+)", said.decode()):
            return found[1], int(found[2])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


async def base_name(server: Server) -> str:
    """What the bare base is called over HTTP: the first of the models."""
    connection = server.connection()
    try:
        return (await connection.get("/v1/models?limit=1")).json()["data"][0]["id"]
    finally:
        connection.close()
