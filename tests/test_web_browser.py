"""The command and its pages in a real browser: what it makes of them, and what they look like."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from pefx.store.catalog import Catalog
from tests.test_commands_pages import started
from tests.web_catalog import family, hostile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1000"),
]


def browse(folder: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What the browser prints at `address`, with a profile of its own."""
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}", *words, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_the_pages(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog", create=True)
    family(catalog)
    hostile(catalog)
    with started(tmp_path / "catalog") as (_, said):
        address = said.split(" ")[0]
        logged = browse(tmp_path, f"{address}/policy/users/ann", "--dump-dom", "--enable-logging=stderr", "--v=0")
        assert "Content Security Policy" not in logged.stderr
        dom = logged.stdout
        assert len(re.findall(r'<a href="/revision/users/ann@\d" class="node current', dom)) == 6
        assert len(re.findall(r'class="node stage-committed"', dom)) == 4
        assert len(re.findall("<figure>", dom)) == 2
        assert re.search(r"<title>users/ann · pefx catalog</title>", dom)
        odd = browse(tmp_path, f"{address}/policy/odd", "--dump-dom").stdout
        assert "<script" not in odd
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in odd
        for path in ("/", "/policy/users/ann", "/revision/users/ann@6"):
            file = tmp_path / "page.png"
            browse(tmp_path, address + path, f"--screenshot={file}")
            with Image.open(file) as picture:
                assert picture.format == "PNG"
                assert picture.size == (1200, 1000)
                colours = picture.convert("RGB").getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 50  # without the stylesheet, or with nothing drawn, it has fewer
            # the accent: links, the current lane, curves
            assert sum(count for count, colour in colours if colour == (0x2F, 0x5D, 0x8A)) > 100
            file.unlink()
