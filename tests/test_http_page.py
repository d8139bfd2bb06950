"""The chat page: what it is allowed to use, and what it does in a real browser."""

import re
from pathlib import Path
from typing import Any

import pytest

from pefx.http.page import CONTENT, FILES, POLICY
from tests.browser_pipe import CHROMIUM, browsing
from tests.http_fakes import FakeEngine, live, small_catalog


def test_it_is_served_with_a_policy_that_allows_its_own_files_only() -> None:
    with live() as server:
        for path, (_, kind) in FILES.items():
            answer = server.client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_needs_nothing_from_elsewhere_and_has_no_code_or_style_within() -> None:
    page = CONTENT["/"].decode()
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", "/chat.css", "/chat.js"}
    assert not re.search(r"<style|<script>| style=| on\w+=", page)
    script = CONTENT["/chat.js"].decode()
    assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|https?://|localStorage|sessionStorage|cookie", script)
    assert "url(" not in CONTENT["/chat.css"].decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_talks_to_both(tmp_path: Path) -> None:
    engine = FakeEngine(pause=0.002)
    catalog = small_catalog(tmp_path, "users/ann", "users/bob", "work/cyd")
    with live(engine, catalog) as server, browsing(tmp_path, server.address) as page:
        page.until("document.querySelector('#base .name').textContent === 'tiny'")
        # Search as you type, choose with the keyboard.
        page.run("document.getElementById('policy').focus()")
        page.type("users/")
        page.until("document.querySelectorAll('#found li[data-name]').length === 2")
        page.press("ArrowDown", 40)
        page.press("ArrowDown", 40)
        page.press("Enter", 13)
        assert page.run("document.getElementById('policy').value") == "users/bob"
        # Both answer, as the server says they do.
        page.run("document.getElementById('seed').value = '7'; document.getElementById('text').focus()")
        page.type("hello <b>there</b>")
        page.press("Enter", 13)
        page.until("document.body.dataset.busy === 'false'")
        assert page.run("document.querySelector('#own .name').textContent") == "users/bob@1"
        for side, model in (("base", "tiny"), ("own", "users/bob")):
            assert said(page, side) == asked(server, model)
            assert page.run(f"document.querySelector('#{side} .user').textContent") == "hello <b>there</b>"
            title = page.run(f"document.querySelector('#{side} .assistant span').title")
            assert re.match(r'"\w"  [\d.]+ %  \(-?[\d.]+\)\n    "\w"', title)
        # Stop.
        page.run("document.getElementById('max_tokens').value = '400'; document.getElementById('seed').value = '3'")
        engine.pause = 0.2
        page.run("document.getElementById('text').focus()")
        page.type("go on")
        page.press("Enter", 13)
        page.until("!document.getElementById('stop').disabled && document.querySelector('.running') !== null")
        before = len(engine.cancelled)
        page.run("document.getElementById('stop').click()")
        page.until("document.body.dataset.busy === 'false'")
        server.until(lambda: len(engine.cancelled) == before + 2)
        page.picture(tmp_path / "page.png")
        assert page.log == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_is_told_what_is_wrong(tmp_path: Path) -> None:
    with live(catalog=small_catalog(tmp_path, "ann")) as server, browsing(tmp_path, server.address) as page:
        page.until("document.querySelector('#base .name').textContent === 'tiny'")
        page.run("const p = document.getElementById('policy'); p.value = 'nobody'; p.dispatchEvent(new Event('input'))")
        page.run("document.getElementById('text').value = 'hello'; document.getElementById('send').click()")
        told = page.until("document.querySelector('#own .told')?.textContent")
        assert told == "the model 'nobody' does not exist"
        page.until("document.querySelector('#base .assistant') !== null")


def said(page: Any, side: str) -> str:
    return page.run(f"document.querySelector('#{side} .assistant')?.textContent ?? ''")


def asked(server: Any, model: str) -> str:
    messages = [{"role": "user", "content": "hello <b>there</b>"}]
    body = {"messages": messages, "model": model, "seed": 7, "max_tokens": 256}
    return server.chat(**body).json()["choices"][0]["message"]["content"]
