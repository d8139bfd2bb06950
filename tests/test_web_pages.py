"""Templates: everything is escaped, nothing undefined passes, and a browser may use nothing but the stylesheet."""

import base64
import hashlib
import re

import pytest
from jinja2 import UndefinedError

from pefx.web.pages import FOLDER, HEADERS, STYLE, compact, environment, render
from tests.web_catalog import SCRIPT


def test_the_policy_allows_the_stylesheet_of_the_page_and_nothing_else() -> None:
    page = render("error.html", location="here", data=None, status=404, title="Not Found", told="no")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style == STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["content-security-policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_comes_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|\son[a-z]+=|\sstyle=", text), file


def test_what_is_told_is_escaped() -> None:
    page = render("error.html", location=SCRIPT, data=None, status=400, title=SCRIPT, told=f'"{SCRIPT}')
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # title and heading, what is told, the location and its tooltip


def test_an_undefined_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("error.html", location="here", data=None)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), ("x", "x"), (1, "1"), (0.25, "0.25"), (True, "true"), ([1, "a"], '[1, "a"]'), ({}, "{}")],
)
def test_values_in_one_line(value: object, said: str) -> None:
    assert compact(value) == said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("revision('a/b@2')", '<a href="/revision/a/b@2">a/b@2</a>'),
        ("revision('a/b@2', 'a/b')", '<a href="/revision/a/b@2">@2</a>'),
        ("revision('a/b@2', 'b')", '<a href="/revision/a/b@2">a/b@2</a>'),
        ("revision('<b>@2')", "&lt;b&gt;@2"),
    ],
)
def test_keys_of_revisions_are_links(call: str, said: str) -> None:
    template = environment().from_string("{% from 'macros.html' import revision %}{{ " + call + " }}")
    assert template.render() == said
