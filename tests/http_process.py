"""A server in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pefx.config import ServeConfig

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0


@contextmanager
def serving(config: ServeConfig, folder: Path, *options: str) -> Iterator[str]:
    """Its address. It must end well when it is asked to."""
    path = folder / "config.py"
    path.write_text(f"from pefx.config import *\nconfig = {config!r}\n")
    command = [sys.executable, str(ROOT / "serve.py"), str(path), "--http", "127.0.0.1:0", "--http.no-warm", *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
