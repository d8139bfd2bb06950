"""What a peer worker and the program that drives it say to each other: one JSON object per line, both ways.

Only the standard library, because each worker runs in an environment of its own that has no pefx. Import this module
before any other: it keeps standard output for the answers and sends everything else that is printed to standard error.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from case import Case
from traffic import Traffic

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

CASES = {"train": Case, "generate": Case, "serve": Traffic}
# A repetition takes at least so long: the first step after a rest, in another's caches, is not what a run is made of.
LEAST_SECONDS = 1.0


def serve(prepare: Callable[[Any], Callable[[], float]]) -> None:
    """Answers commands until `quit` or the end of the input.

    `prepare` builds what a case needs and returns a function that does one repetition and says its seconds.
    """
    run: Callable[[], float] | None = None
    tokens = 0
    for line in sys.stdin:
        try:
            command: dict[str, Any] = json.loads(line)
            match command["op"]:
                case "prepare":
                    run = None
                    case = CASES[command["case"]["kind"]](**command["case"])
                    prepared = prepare(case)
                    for _ in range(case.warm_runs):
                        prepared()
                    run, tokens = prepared, case.tokens
                    answer: dict[str, Any] = {"ok": True}
                case "run":
                    if run is None:
                        raise ValueError("no case is prepared")
                    times = [run()]
                    while sum(times) < LEAST_SECONDS:
                        times.append(run())
                    answer = {"seconds": sum(times), "tokens": tokens * len(times)}
                case "quit":
                    return
                case other:
                    raise ValueError(f"unknown op {other!r}")
        except Exception as error:  # noqa: BLE001 - whatever a library raises is an answer, and the worker goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=ANSWERS, flush=True)
