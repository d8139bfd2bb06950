"""Bodies that are not as they should be: broken bytes, wrong types, values out of bounds; and framing that is none."""

import json
import random
from collections.abc import Iterator
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 40, -(1 << 70), 1e308, 0.5, "", "x", "\x00", "\ud800", "🙂" * 50),
    *([], [[]], [None], [-1], [1 << 33], ["a", 1], {}, {"": {}}, {"type": "json_schema"}, {"1": 101}, [1.5]),
)
FIELDS = (
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "best_of", "stop", "seed"),
    *("logit_bias", "logprobs", "stream", "stream_options", "response_format", "regex", "priority", "timeout", "echo"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids", "suffix", "tools", "nonsense"),
)


def bodies(valid: dict[str, Any], count: int, seed: int) -> Iterator[bytes]:
    """`count` bodies that are a mutation of `valid` each; some of them are valid still."""
    rng = random.Random(seed)
    text = json.dumps(valid).encode()
    for turn in range(count):
        way = turn % 4
        if way == 0:
            yield _bytes(rng, text)
        elif way == 1:
            row = {**valid, rng.choice(FIELDS): rng.choice(STRANGE)}
            row.pop(rng.choice(FIELDS) if rng.random() < 0.2 else "", None)
            yield json.dumps(row).encode("utf-8", "surrogatepass")
        elif way == 2:
            yield text[: rng.randrange(len(text))]
        else:
            yield _nested(rng)


def _bytes(rng: random.Random, text: bytes) -> bytes:
    """Some bytes changed, put in, or taken out."""
    changed = bytearray(text)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed))
        changed[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    return bytes(changed)


def _nested(rng: random.Random) -> bytes:
    """JSON that is deep, wide, or no object."""
    deep = rng.randint(1, 5000)
    choices = (b"[" * deep, b'{"a":' * deep, b"[" * deep + b"]" * deep, json.dumps(rng.choice(STRANGE[:14])).encode())
    return rng.choice(choices)


def framings(path: str) -> list[bytes]:
    """Requests that are no HTTP, or lie about themselves; each for a connection of its own."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
    return [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        head + b"content-length: -5\r\n\r\n{}",
        head + b"content-length: 2\r\ncontent-length: 9\r\n\r\n{}",
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        head + b"content-length: 2\r\n" + b"x-long: " + b"a" * 200_000 + b"\r\n\r\n{}",
        head + b"content-length: 1000\r\n\r\n{}",
        head.replace(b"application/json", b"text/plain") + b"content-length: 2\r\n\r\n{}",
        head.replace(b"127.0.0.1", b"evil.example") + b"content-length: 2\r\n\r\n{}",
    ]
