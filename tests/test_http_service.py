"""The engine's thread and what is around it: room, cancelling, the engine's death, the end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pefx.errors import PefxError
from pefx.http.service import Call, Service
from pefx.serving.jobs import Answered, Piece
from pefx.serving.requests import Request
from tests.http_fakes import FakeEngine


def work(count: int = 1, **fields: Any) -> list[tuple[Request, None]]:
    given = {"prompt": "abc", "max_tokens": 8, "ignore_eos": True} | fields
    return [(Request(id=f"r{index}", **given), None) for index in range(count)]


def run(body: Callable[[Service, FakeEngine], Awaitable[Any]], engine: FakeEngine | None = None, **bounds: Any) -> Any:
    engine = engine or FakeEngine()

    async def main() -> Any:
        service = Service(engine, **{"queue": 4, **bounds})
        service.start()
        try:
            return await body(service, engine)
        finally:
            engine.gate.set()
            await service.drain(5)
            assert engine.closed

    return asyncio.run(main())


async def collect(call: Call) -> list[Any]:
    found = []
    while (event := await call.next()) is not None:
        found.append(event)
    return found


def kind_of(error: pytest.ExceptionInfo[PefxError]) -> str:
    return error.value.kind


def test_a_call_is_answered_in_its_order() -> None:
    async def body(service: Service, engine: FakeEngine) -> list[Answered]:
        return await service.submit(work(3), None, False).answers()

    answers = run(body)
    assert [answered.row["id"] for answered in answers] == ["r0", "r1", "r2"]


def test_pieces_make_the_answer() -> None:
    async def body(service: Service, engine: FakeEngine) -> list[Any]:
        return await collect(service.submit(work(), None, True))

    *pieces, answered = run(body)
    assert len(pieces) == 8
    assert "".join(piece.text for piece in pieces) == answered.row["text"]
    assert isinstance(pieces[0], Piece)


def test_over_the_queue_is_refused_at_once_and_nothing_of_it_begins() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        call = service.submit(work(3), None, False)
        with pytest.raises(PefxError) as caught:
            service.submit(work(2), None, False)
        assert kind_of(caught) == "busy"
        with pytest.raises(PefxError) as caught:
            service.submit(work(5), None, False)
        assert kind_of(caught) == "invalid_request"  # this will never fit
        engine.gate.set()
        await call.answers()
        assert service.in_flight == 0
        await service.submit(work(4), None, False).answers()
        with pytest.raises(PefxError) as caught:
            service.submit(work(2, n=3), None, False)  # what counts are answers
        assert kind_of(caught) == "invalid_request"
        await service.submit(work(2, n=2), None, False).answers()

    run(body)


def test_cancelled_it_is_gone_and_its_room_is_free() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        call = service.submit(work(4), None, True)
        service.cancel(call)
        assert service.in_flight == 0
        engine.gate.set()
        assert await service.submit(work(4), None, False).answers()
        assert engine.cancelled == list(call.handles)
        service.cancel(call)  # twice is once

    run(body)


def test_one_that_fails_ends_the_call() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        call = service.submit([*work(1), *work(1, prompt=(999,))], None, False)
        with pytest.raises(PefxError) as caught:
            await call.answers()
        assert kind_of(caught) == "token_out_of_range"
        assert service.in_flight == 0

    run(body)


def test_past_its_deadline() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        with pytest.raises(PefxError) as caught:
            await service.submit(work(), time.monotonic() + 0.05, False).answers()
        assert kind_of(caught) == "timeout"

    run(body)


def test_the_engine_dies(capfd: pytest.CaptureFixture[str]) -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        calls = [service.submit(work(), None, stream) for stream in (True, False)]
        engine.dies = RuntimeError("the device is gone")
        for call in calls:
            with pytest.raises(PefxError, match="the device is gone") as caught:
                await call.next()
            assert kind_of(caught) == "engine_failed"
        assert not service.alive
        with pytest.raises(PefxError) as caught:
            service.submit(work(), None, False)
        assert kind_of(caught) == "engine_down"

    run(body)
    assert "RuntimeError: the device is gone" in capfd.readouterr().err


def test_who_does_not_read_is_cancelled() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        call = service.submit(work(max_tokens=200), None, True)
        await call.overrun.wait()
        with pytest.raises(PefxError) as caught:
            await call.next()
        assert kind_of(caught) == "slow_client"
        assert service.in_flight == 0

    run(body, FakeEngine(pause=0.001), buffer=10)


def test_one_wake_up_for_each_step() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        call = service.submit(work(4), None, True)
        woken, take = 0, service._take

        def count(events: Any) -> None:
            nonlocal woken
            woken += 1
            take(events)

        service._take = count
        engine.gate.set()
        assert len(await collect(call)) == 4 * 8 + 4
        assert woken <= 9

    run(body)


def test_draining_takes_nothing_new_and_finishes_what_runs() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        call = service.submit(work(), None, False)
        end = asyncio.ensure_future(service.drain(5))
        await asyncio.sleep(0)
        with pytest.raises(PefxError) as caught:
            service.submit(work(), None, False)
        assert kind_of(caught) == "draining"
        assert len(await call.answers()) == 1
        await end
        assert not service.alive

    run(body, FakeEngine(pause=0.005))


def test_what_does_not_finish_in_time_is_told() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        engine.gate.clear()
        call = service.submit(work(), None, False)
        await service.drain(0.05)
        with pytest.raises(PefxError) as caught:
            await call.answers()
        assert kind_of(caught) == "draining"

    run(body)


def test_numbers_are_of_a_moment_ago() -> None:
    async def body(service: Service, engine: FakeEngine) -> None:
        await service.submit(work(), None, False).answers()
        await asyncio.sleep(0.05)
        assert service.state.tokens == 8
        assert service.state.seats == engine.seats
        assert service.adapters is not None

    run(body)
