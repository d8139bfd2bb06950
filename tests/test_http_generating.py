"""Requests that meet a server without room, or nobody who waits."""

from tests.http_fakes import live


def test_a_server_that_ends_takes_nothing_new() -> None:
    with live() as server:
        server.api.service.draining = True
        for answer in (server.complete(), server.chat(), server.complete(stream=True)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert answer.headers["retry-after"] == "1"
        server.api.service.draining = False


def test_more_prompts_than_will_ever_fit() -> None:
    with live(queue=2) as server:
        answer = server.complete(prompt=["a", "b", "c"])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert server.complete(n=3).status_code == 400
        assert server.complete(prompt=["a", "b"]).status_code == 200


def test_priority_and_seed_arrive() -> None:
    with live() as server:
        server.complete(priority=5, seed=8, top_k=2, min_p=0.1, repetition_penalty=1.5)
        (request,) = server.engine.submitted
        assert (request.priority, request.seed, request.top_k) == (5, 8, 2)
        assert (request.min_p, request.repetition_penalty) == (0.1, 1.5)
