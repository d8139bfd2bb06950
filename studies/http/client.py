"""A small HTTP client over asyncio's streams: one connection, kept open, one request at a time, little parsed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Reply:
    """What came back, and the seconds until its status line."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Told:
    """The answer to a completion, whole or streamed. `times` are seconds from the request to each new token.

    `error` is the kind of error, whatever the status; of an answer that ended before its end, "cut".
    """

    status: int
    seconds: float
    model: str = ""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    retry_after: float = 0.0

    @property
    def token_seconds(self) -> float | None:
        """The mean time between two tokens, of a stream."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None


class Connection:
    """One connection to `host`:`port`; it is opened when it is first needed, and again after an error."""

    def __init__(self, host: str, port: int, limit: float = 300.0):
        self.host, self.port, self.limit = host, port, limit
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used = False

    async def open(self) -> None:
        """Opened already, and not closed by the server since: nothing happens."""
        if self._reader is not None and self._reader.at_eof():
            self.close()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
            self._used = False

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def get(self, path: str) -> Reply:
        return await self._asked("GET", path, b"")

    async def post(self, path: str, body: Any) -> Reply:
        """`body` is sent as JSON, or as it is where it is bytes."""
        return await self._asked("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    async def complete(self, body: dict[str, Any]) -> Told:
        """A completion with its tokens; `body["stream"]` says how. Raises OSError where the connection fails."""
        begun = time.monotonic()
        body = {**body, "return_token_ids": True}
        if not body.get("stream"):
            reply = await self.post(COMPLETIONS, body)
            return _whole(reply)
        told = Told(0, 0.0)
        async with asyncio.timeout(self.limit):
            try:
                async for part in self._events(COMPLETIONS, body, told, begun):
                    _take(told, part, time.monotonic() - begun)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                told.error = "cut"
        if told.status == 200 and told.error is None and told.finish_reason is None:
            told.error = "cut"
        return told

    async def _events(self, path: str, body: Any, told: Told, begun: float) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream; an answer that is none goes into `told`."""
        told.status, headers = await self._begin("POST", path, json.dumps(body).encode())
        told.seconds = time.monotonic() - begun
        if not headers.get("content-type", "").startswith("text/event-stream"):
            failed = _whole(Reply(told.status, headers, await self._body(headers), told.seconds))
            told.error, told.retry_after = failed.error, failed.retry_after
            return
        rest, ended = b"", False
        async for chunk in self._chunks():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data == DONE:
                    ended = True
                else:
                    yield json.loads(data)
        if not ended:
            told.error = told.error or "cut"

    async def _asked(self, method: str, path: str, body: bytes) -> Reply:
        begun = time.monotonic()
        async with asyncio.timeout(self.limit):
            try:
                status, headers = await self._begin(method, path, body)
                seconds = time.monotonic() - begun
                return Reply(status, headers, await self._body(headers), seconds)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.close()
                raise ConnectionError(f"{method} {path}: {error!r}") from None

    async def _begin(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str]]:
        """Send a request; status and headers of its answer. Once more, if the server has closed what was idle."""
        await self.open()
        try:
            await self._send(method, path, body)
            return await self._head()
        except (OSError, asyncio.IncompleteReadError):
            used = self._used
            self.close()
            if not used:
                raise
        await self.open()
        await self._send(method, path, body)
        return await self._head()

    async def _send(self, method: str, path: str, body: bytes) -> None:
        assert self._writer is not None
        head = f"{method} {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: application/json\r\n" if body else ""
        self._writer.write(f"{head}{kind}\r\n".encode() + body)
        await self._writer.drain()

    async def _head(self) -> tuple[int, dict[str, str]]:
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self._used = True
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def _body(self, headers: dict[str, str]) -> bytes:
        assert self._reader is not None
        if "content-length" in headers:
            body = await self._reader.readexactly(int(headers["content-length"]))
        else:
            body = b"".join([chunk async for chunk in self._chunks()])
        if headers.get("connection", "").lower() == "close":
            self.close()
        return body

    async def _chunks(self) -> AsyncIterator[bytes]:
        reader = self._reader
        assert reader is not None
        while line := await reader.readline():
            if not (size := int(line, 16)):
                break
            yield (await reader.readexactly(size + 2))[:-2]
        else:
            raise asyncio.IncompleteReadError(b"", None)
        await reader.readline()


def _take(told: Told, part: dict[str, Any], now: float) -> None:
    """One event of a stream."""
    if "error" in part:
        told.error = part["error"]["code"]
        return
    told.model = part["model"]
    for choice in part["choices"]:
        tokens = choice.get("token_ids") or []
        told.tokens += tokens
        told.times += [now] * len(tokens)
        told.finish_reason = choice.get("finish_reason") or told.finish_reason


def _whole(reply: Reply) -> Told:
    """The answer to a body that is not streamed."""
    told = Told(reply.status, reply.seconds, retry_after=float(reply.headers.get("retry-after", 0)))
    row = reply.json()
    if "error" in row:
        told.error = row["error"]["code"] or row["error"]["type"]
        return told
    (choice,) = row["choices"]
    told.model, told.tokens, told.finish_reason = row["model"], choice["token_ids"], choice["finish_reason"]
    return told
