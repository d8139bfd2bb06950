"""Elements of SVG: what is in them is escaped."""

from xml.etree import ElementTree

from markupsafe import Markup

from pefx.web.svg import element, shortened


def test_an_element_escapes_what_it_is_given() -> None:
    said = element("text", "<script>&", Markup("<b/>"), class_='a"b', text_anchor="end", x=1.26, y=2, href=None)
    assert str(said) == '<text class="a&#34;b" text-anchor="end" x="1.3" y="2">&lt;script&gt;&amp;<b/></text>'
    assert ElementTree.fromstring(str(said)).get("class") == 'a"b'


def test_elements_nest() -> None:
    assert str(element("g", element("a", "x"))) == "<g><a>x</a></g>"


def test_names_are_shortened_in_their_middle() -> None:
    assert shortened("short", 5) == "short"
    assert shortened("users/somebody/notes-2", 12) == "users/s…es-2"
    assert len(shortened("x" * 128, 30)) == 30
