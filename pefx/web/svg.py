"""SVG as text: elements whose attributes and texts are escaped."""

from markupsafe import Markup, escape


def element(tag: str, *children: str | Markup, **attributes: str | float | int | None) -> Markup:
    """`<tag ...>children</tag>`. Text that is no Markup is escaped, and so are attributes.

    A name's last underscore goes (`class_`), others become dashes; None leaves the attribute out.
    """
    given = [(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None]
    said = "".join(f' {name}="{escape(_text(value))}"' for name, value in given)
    return Markup(f"<{tag}{said}>{''.join(escape(child) for child in children)}</{tag}>")


def _text(value: str | float | int) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, int | float) else value


def shortened(text: str, longest: int) -> str:
    """`text`, its middle left out where it is longer than `longest`: names differ at their ends."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) * 2 // 5
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"
