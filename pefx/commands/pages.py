"""`pefx catalog web`."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg


@dataclass(frozen=True)
class Web:
    """Show a catalog as pages in a browser of this machine: policies, lineages, evaluations. Nothing is written."""

    path: Annotated[str, arg(metavar="PATH"), tyro.conf.Positional]
    """The folder or URL of the catalog."""
    port: int = 8010
    """The port; 0: any free one."""
    host: str = "127.0.0.1"
    """An address that only this machine reaches."""

    def run(self) -> int:
        from pefx.web.server import serve_pages  # other commands do not wait for a web server

        return serve_pages(self.path, self.host, self.port)
