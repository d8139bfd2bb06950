"""The server on a port, until a signal ends it: what is in flight then is finished first."""

import asyncio
import signal

from pefx.config import HttpConfig
from pefx.errors import PefxError
from pefx.http.api import Api
from pefx.http.app import build_app
from pefx.http.log import tell, to_stderr
from pefx.http.served import Served
from pefx.web.server import Server, listen, loopback, plain_config

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANG_UP = 5  # seconds after the drain for connections that are still open


def address_of(settings: HttpConfig) -> str:
    """Where to listen. PefxError where others could reach a server without keys."""
    try:
        return loopback(settings.host)
    except PefxError:
        if settings.keys is not None:
            return settings.host
    raise PefxError(
        f"--http {settings.host!r} may be reached by others, and without keys anybody may do anything: make some with "
        "`pefx keys create` and name their file with --http.keys, or use 127.0.0.1, ::1 or localhost"
    )


class HttpServer(Server):
    """Serves `api`. The first signal lets it drain, the second ends it at once."""

    def __init__(self, api: Api):
        self.api = api
        self._ending: asyncio.Task[None] | None = None
        more = {"timeout_graceful_shutdown": HANG_UP, "h11_max_incomplete_event_size": 64 << 10}
        super().__init__(plain_config(build_app(api, self._begin), lifespan="on", log_level="critical", **more))

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for number in SIGNALS:
                loop.add_signal_handler(number, self.end)
        except (RuntimeError, ValueError):  # not the main thread, whose signals are another's
            pass

    def end(self) -> None:
        """Begin to end; asked again, do it at once. In the event loop."""
        if self._ending is not None:
            self.should_exit = self.force_exit = True
            return
        tell("draining", in_flight=self.api.service.in_flight)
        self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await self.api.end(self.api.settings.drain)
        self.should_exit = True


def serve_http(served: Served, settings: HttpConfig) -> int:
    """Serve until SIGINT or SIGTERM; returns an exit code, 1 where the engine failed. PefxError where it cannot begin.

    The engine is closed at the end, whatever happens.
    """
    try:
        address = address_of(settings)
        api = Api(served, settings)
        bound = listen(address, settings.port, "--http")
    except BaseException:
        served.engine.close()
        raise
    to_stderr()
    with bound:
        name = f"[{address}]" if ":" in address else address
        print(f"http://{name}:{bound.getsockname()[1]} serves {served.name}; Ctrl-C ends it", flush=True)
        HttpServer(api).run(sockets=[bound])
    return 0 if api.service.failure is None else 1
