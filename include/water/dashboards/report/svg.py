"""Altair charts as inline SVG that contains only shapes and text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from altair import TopLevelMixin

_NAMESPACE = "http://www.w3.org/2000/svg"
# The elements and attributes that a drawing needs. All others are removed: a script, a link or an event handler,
# however it might get there.
_ELEMENTS = frozenset(
    {"svg", "g", "path", "line", "rect", "circle", "text", "tspan", "defs", "clipPath", "title", "desc"}
)
_ATTRIBUTES = frozenset(
    {
        *("viewBox", "transform", "d", "x", "y", "x1", "y1", "x2", "y2", "width", "height", "cx", "cy", "r", "rx"),
        *("dx", "dy", "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray"),
        *("stroke-linejoin", "stroke-linecap", "stroke-miterlimit", "opacity", "font-size", "font-weight"),
        "text-anchor",
    }
)
# A color is a name, a hexadecimal number or a variable of the page's style, never an address.
_COLOUR = re.compile(r"(none|transparent|#[0-9a-fA-F]{3,8}|[a-z]+|var\(--[a-z-]+\))")
_COLOURED = frozenset({"fill", "stroke"})
# Characters that are not allowed in XML: one of them in a name would make the whole chart fail.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """The text with the characters that XML does not allow replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def to_svg(chart: TopLevelMixin, name: str, title: str, description: str) -> Markup:
    """The chart as one <svg> element.

    Args:
        chart: An Altair chart.
        name: The prefix of the ids; it must be unique among the charts of a page.
        title: For readers who cannot see the chart.
        description: For readers who cannot see the chart.
    """
    import vl_convert

    # The conversion may not fetch any address: a chart contains all its data.
    return clean_svg(vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[]), name, title, description)


def clean_svg(source: str, name: str, title: str, description: str) -> Markup:
    root = ElementTree.fromstring(source)
    _clean(root)
    # The page's style determines the width; the drawing keeps its proportions.
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    texts = []
    for number, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_NAMESPACE}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = plain(text)
        root.insert(number, element)
        texts.append(f"{name}-{tag}")
    root.set("role", "img")
    root.set("aria-labelledby", texts[0])
    root.set("aria-describedby", texts[1])
    ElementTree.register_namespace("", _NAMESPACE)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element) -> None:
    for child in list(element):
        name = _local_name(child)
        if name not in _ELEMENTS or _is_empty(name, child):
            element.remove(child)
        else:
            _clean(child)
    element.attrib = dict(_kept(element.attrib))


def _is_empty(name: str, element: ElementTree.Element) -> bool:
    """Whether the element shows nothing: Vega draws a path around every group, even an invisible one."""
    if name != "path":
        return False
    invisible = element.get("display") == "none" or element.get("d", "") in ("", "M0,0h0v0h0Z")
    return invisible or (element.get("class") == "background" and not {"fill", "stroke"} & element.attrib.keys())


def _kept(attributes: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        if name not in _ATTRIBUTES or (name == "opacity" and value == "1"):
            continue
        if name in _COLOURED and not _COLOUR.fullmatch(value):
            continue
        yield name, _shorter(value) if name in ("d", "transform") else value


def _shorter(value: str) -> str:
    """Round the numbers to a tenth of a pixel; a smaller difference is not visible."""
    return re.sub(r"-?[0-9]+\.[0-9]+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value)


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.removeprefix(f"{{{_NAMESPACE}}}") if isinstance(element.tag, str) else ""
