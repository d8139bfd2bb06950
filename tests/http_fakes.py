"""A stand-in for the engine, and servers over it: what it answers follows from policy, prompt, seed and choice."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread, get_ident
from typing import Any

import httpx
import numpy as np

from pefx.config import AdapterSpec, HttpConfig
from pefx.errors import PefxError
from pefx.http.api import Api
from pefx.http.served import Served
from pefx.http.server import HttpServer
from pefx.serving.engine import EngineState
from pefx.serving.jobs import Answered, Piece
from pefx.serving.policies import Policies
from pefx.serving.requests import Request, RequestError, prompt_tokens
from pefx.store.catalog import Catalog
from pefx.store.readiness import Readiness
from pefx.store.records import Revision
from pefx.store.tiers import TierCounts, Tiers
from pefx.web.server import listen

BASE = "sha256:" + "a" * 64
SPEC = AdapterSpec(rank=2, targets=("q_proj", "v_proj"))
EOS, VOCABULARY, CONTEXT = 0, 256, 512
CACHED = 4  # a prompt seen before is found in the cache, but for its last tokens


class Letters:
    """One token a byte; byte 0 ends a text."""

    eos = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token != EOS).decode("utf-8", errors="replace")

    def chat(self, messages: Any) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise PefxError("/somewhere/tokenizer.json: the chat template refuses the messages: who began?")
        return self.encode("".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>")


@dataclass(eq=False)
class Choice:
    """One answer while it grows; its text is in letters, so each token is certain but for what may begin a stop."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    told: int = 0
    finish_reason: str | None = None


@dataclass(eq=False)
class Sequence:
    request: Request
    prompt: list[int]
    policy: str | None
    revision: int | None
    deadline: float | None
    listen: Callable[[Piece], None] | None
    begun: float
    cached: int
    where: str
    choices: list[Choice]
    first: float | None = None


class FakeEngine:
    """Has the engine's interface, and checks that one thread uses it. Each step draws one token for each choice.

    `pause` is slept in each step; while `gate` is not set, steps do nothing; a policy named in `broken` has an error.
    """

    def __init__(self, seats: int = 64, pause: float = 0.0):
        self.seats, self.pause = seats, pause
        self.gate = Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.dies: Exception | None = None
        self.cancelled: list[int] = []
        self.submitted: list[Request] = []
        self.closed = False
        self.steps = 0
        self._running: dict[int, Sequence] = {}
        self._waiting: deque[int] = deque()
        self._seen: set[tuple[int, ...]] = set()
        self._counts = {"prompt_tokens": 0, "tokens": 0, "cached_tokens": 0}
        self._thread: int | None = None

    def submit(
        self,
        handle: int,
        request: Request,
        revision: Revision | None,
        *,
        deadline: float | None = None,
        listen: Callable[[Piece], None] | None = None,
    ) -> int:
        self._own_thread()
        assert request.policy == (None if revision is None else revision.policy)
        if request.regex == "(":
            raise RequestError("field 'regex': is no regular expression", id=request.id)
        prompt = prompt_tokens(request, Letters().encode, VOCABULARY, CONTEXT)
        known = tuple(prompt) in self._seen
        self._seen.add(tuple(prompt))
        self.submitted.append(request)
        self._running[handle] = Sequence(
            request=request,
            prompt=prompt,
            policy=request.policy,
            revision=None if revision is None else revision.number,
            deadline=deadline,
            listen=listen,
            begun=time.monotonic(),
            cached=max(0, len(prompt) - CACHED) if known else 0,
            where="base" if revision is None else "cold",
            choices=[Choice() for _ in range(request.n)],
        )
        self._waiting.append(handle)
        return len(prompt)

    def cancel(self, handle: int) -> None:
        self._own_thread()
        if self._running.pop(handle, None) is not None:
            self.cancelled.append(handle)

    def step(self) -> list[Answered]:
        self._own_thread()
        if self.dies is not None:
            raise self.dies
        if self.pause:
            time.sleep(self.pause)
        over = []
        for handle, sequence in list(self._running.items())[: self.seats]:
            answered = self._advance(handle, sequence)
            if answered is not None:
                del self._running[handle]
                over.append(answered)
        self.steps += 1
        return over

    def wait(self, seconds: float) -> None:
        self._own_thread()
        if not self.gate.is_set():
            time.sleep(seconds)

    @property
    def room(self) -> bool:
        return len(self._running) < 2 * self.seats

    @property
    def idle(self) -> bool:
        return not self._running and self.dies is None

    def state(self) -> EngineState:
        self._own_thread()
        running = min(len(self._running), self.seats)
        return EngineState(
            waiting=len(self._running) - running, running=running, seats=self.seats, steps=self.steps, **self._counts
        )

    def adapters(self) -> TierCounts:
        return Tiers(lambda revision: None, 1).counts()

    def close(self) -> None:
        self.closed = True

    def _own_thread(self) -> None:
        self._thread = self._thread or get_ident()
        assert self._thread == get_ident(), "the engine is for one thread"

    def _advance(self, handle: int, sequence: Sequence) -> Answered | None:
        request = sequence.request
        if sequence.deadline is not None and time.monotonic() > sequence.deadline:
            return self._over(handle, sequence, PefxError(f"request {request.id} took too long", "timeout"))
        if not self.gate.is_set():
            return None
        if sequence.policy in self.broken:
            return self._over(handle, sequence, PefxError(f"/disk/of/{sequence.policy} is damaged", "damaged"))
        sequence.first = sequence.first or time.monotonic()
        for index, choice in enumerate(sequence.choices):
            if choice.finish_reason is None:
                text = self._draw(sequence, index, choice)
                new = 0 if request.max_tokens == 0 else 1
                if sequence.listen is not None:
                    last = slice(len(choice.tokens) - new, None)
                    sequence.listen(
                        Piece(
                            handle,
                            index,
                            text,
                            tuple(choice.tokens[last]),
                            tuple(choice.logprobs[last]),
                            tuple(map(tuple, choice.top[last])) if request.top_logprobs else (),
                            choice.finish_reason,
                        )
                    )
        if all(choice.finish_reason for choice in sequence.choices):
            return self._over(handle, sequence, None)
        return None

    def _draw(self, sequence: Sequence, index: int, choice: Choice) -> str:
        """One more token; returns the text that is certain now."""
        request = sequence.request
        if request.max_tokens == 0:
            choice.finish_reason = "length"
            return ""
        names = [sequence.policy, sequence.revision, sequence.prompt, index, request.seed or 0, len(choice.tokens)]
        value = int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big")
        ends = value % 16 == 0 and not request.ignore_eos
        choice.tokens.append(EOS if ends else 97 + value % 26)
        choice.logprobs.append(-(value % 64) / 16)
        choice.top.append([(97 + (value + i) % 26, -float(i)) for i in range(request.top_logprobs)])
        text, most = self._text(choice), min(request.max_tokens, CONTEXT - len(sequence.prompt))
        at = min([found for stop in request.stop if (found := text.find(stop)) >= 0], default=-1)
        if ends or at >= 0:
            choice.finish_reason = "stop"
        elif len(choice.tokens) >= most:
            choice.finish_reason = "length"
        certain = len(text) if choice.finish_reason else len(text) + 1 - max(map(len, request.stop), default=1)
        piece = (text[:at] if at >= 0 else text)[choice.told : max(certain, choice.told)]
        choice.told += len(piece)
        return piece

    def _text(self, choice: Choice) -> str:
        return Letters().decode(choice.tokens)

    def _over(self, handle: int, sequence: Sequence, error: PefxError | None) -> Answered:
        request, now = sequence.request, time.monotonic()
        tokens = sum(len(choice.tokens) for choice in sequence.choices)
        counts: dict[str, Any] = {
            "prompt_tokens": len(sequence.prompt),
            "tokens": tokens,
            "cached_tokens": sequence.cached,
        }
        for name, count in counts.items():
            self._counts[name] += count
        row: dict[str, Any] = {"id": request.id}
        if error is not None:
            row["error"] = {"type": error.kind, "message": str(error)}
        else:
            choices = [self._row(request, choice) for choice in sequence.choices]
            scores = [None, *(-float(token) / 256 for token in sequence.prompt[1:])]
            row |= {"policy": sequence.policy, "revision": sequence.revision, **choices[0]}
            row["prompt_logprobs"] = scores if request.prompt_logprobs else None
            if request.remember is not None:
                row["remembered"] = f"{request.remember}@1"
            if request.n > 1:
                row["choices"] = choices
        return Answered(
            handle=handle,
            row=row,
            waited=(sequence.first or now) - sequence.begun,
            seconds=now - sequence.begun,
            where=sequence.where,
            **counts,
        )

    def _row(self, request: Request, choice: Choice) -> dict[str, Any]:
        text = self._text(choice)
        for stop in request.stop:
            text = text.split(stop)[0]
        logprobs = choice.logprobs if request.logprobs else None
        row = {"text": text, "tokens": choice.tokens, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        return row | ({"top_logprobs": choice.top} if request.top_logprobs else {})


def commit(catalog: Catalog, policy: str, seed: int = 0, base: str = BASE, **changes: Any) -> Revision:
    """One more revision of `policy`."""
    random = np.random.default_rng(seed)
    adapter = {s: {f: random.normal(size=(2, 2, 24)).astype(np.float32) for f in "ab"} for s in SPEC.targets}
    given: dict[str, Any] = {"step": seed, "seeds": {}, "config": {}, "data_fingerprint": "", "metrics": {}} | changes
    return catalog.commit(policy, adapter=adapter, spec=SPEC, base=base, **given)


def served(engine: FakeEngine, catalog: Catalog | None) -> Served:
    """What a server is given."""
    policies = Policies(catalog, BASE, SPEC)
    readiness = None if catalog is None else Readiness(Tiers(policies.load, 1 << 20), policies.check)
    return Served("tiny", BASE, CONTEXT, engine, Letters(), policies, catalog, readiness)


@dataclass
class Live:
    """A server that runs: its address, its parts, and a client of it."""

    address: str
    api: Api
    engine: FakeEngine
    client: httpx.Client
    server: HttpServer

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": "tiny", "prompt": "abc", "seed": 1} | body)

    def chat(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hello"}]
        return self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, "seed": 1} | body)

    def events(self, path: str, body: Any) -> list[Any]:
        """All events of a stream; the last, [DONE], is checked and left out."""
        with self.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for what another thread does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.005)


@contextmanager
def live(
    engine: FakeEngine | None = None, catalog: Catalog | None = None, keys: Path | None = None, **settings: Any
) -> Iterator[Live]:
    """A server on a free port, in a thread, over `engine`."""
    engine = engine or FakeEngine()
    given: dict[str, Any] = {"poll": 60.0, "drain": 5.0} | settings
    api = Api(served(engine, catalog), HttpConfig(keys=None if keys is None else str(keys), **given))
    server = HttpServer(api)
    with listen("127.0.0.1", 0) as bound:
        thread = Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            with httpx.Client(base_url=address, timeout=30) as client:
                yield Live(address, api, engine, client, server)
        finally:
            engine.gate.set()
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()
            assert engine.closed


def small_catalog(path: Path, *policies: str) -> Catalog:
    """A catalog with one revision of each policy."""
    catalog = Catalog.open(path / "catalog", create=True)
    for seed, policy in enumerate(policies):
        commit(catalog, policy, seed)
    return catalog
