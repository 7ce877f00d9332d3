"""Shapes and words in SVG: what every drawing of the report is made of.

Colours, line widths and fonts are classes of page.css, so that a drawing follows light and dark.
"""

import unicodedata
from collections.abc import Sequence
from xml.etree import ElementTree

Number = float | int

_EM = {"wide": 1.0, "capital": 0.72, "narrow": 0.34, "other": 0.575}
"""Widths of letters as shares of the font's size, a little above those of common sans serifs."""


class Drawing:
    """An SVG picture with a title and a description for those who do not see it.

    Lengths are user units; ``width`` and ``height`` are its viewBox, and it fills what the page
    gives it.
    """

    def __init__(self, name: str, title: str, description: str, width: Number) -> None:
        self.name, self.width = name, width
        self._root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "class": name,
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-description",
            },
        )
        for tag, text in (("title", title), ("desc", description)):
            kind = "title" if tag == "title" else "description"
            ElementTree.SubElement(self._root, tag, {"id": f"{name}-{kind}"}).text = clean(text)
        self._into = [self._root]

    def rect(
        self,
        x: Number,
        y: Number,
        width: Number,
        height: Number,
        kind: str,
        radius: Number = 0,
        pattern: str = "",
    ) -> None:
        """A rectangle with its upper left corner at x, y, filled as its class or by a pattern."""
        extra = {"rx": _text(radius)} if radius else {}
        if pattern:
            extra["fill"] = f"url(#{pattern})"
        self._add("rect", kind, x=x, y=y, width=max(width, 0), height=max(height, 0), **extra)

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number, kind: str) -> None:
        """A straight line."""
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, steps: Sequence[str | Number], kind: str, width: Number | None = None) -> None:
        """A path of SVG commands and lengths; ``width`` is that of its stroke."""
        extra = {} if width is None else {"stroke-width": _text(width)}
        self._add("path", kind, d=" ".join(_text(step) for step in steps), **extra)

    def text(
        self, x: Number, y: Number, words: str, kind: str = "", anchor: str = "start", turn: int = 0
    ) -> None:
        """One line of words, its baseline at x, y; ``turn`` in degrees, clockwise."""
        extra = {} if anchor == "start" else {"text-anchor": anchor}
        if turn:
            extra["transform"] = f"rotate({turn} {_text(x)} {_text(y)})"
        self._add("text", kind, x=x, y=y, **extra).text = clean(words)

    def open(self, kind: str, hint: str = "") -> None:
        """Begin a group; ``hint`` shows under a pointer."""
        group = ElementTree.SubElement(self._into[-1], "g", {"class": kind} if kind else {})
        if hint:
            ElementTree.SubElement(group, "title").text = clean(hint)
        self._into.append(group)

    def close(self) -> None:
        """End the group that was begun last."""
        self._into.pop()

    def stripes(self, name: str, kind: str) -> None:
        """Define a pattern of slanted lines to fill with; ``kind`` is its class."""
        pattern = ElementTree.SubElement(
            self._root,
            "pattern",
            {
                "id": name,
                "class": kind,
                "width": "6",
                "height": "6",
                "patternUnits": "userSpaceOnUse",
                "patternTransform": "rotate(45)",
            },
        )
        for tag, width in (("stripe-ground", "6"), ("stripe", "2.4")):
            ElementTree.SubElement(pattern, "rect", {"class": tag, "width": width, "height": "6"})

    def style(self, rules: str) -> None:
        """Carry these CSS rules, for a picture that stands alone; they are a constant of ours."""
        sheet = ElementTree.Element("style")
        sheet.text = rules
        self._root.insert(2, sheet)  # behind the title and the description

    def finish(self, height: Number) -> str:
        """The picture as text, ``height`` units high."""
        self._root.set("viewBox", f"0 0 {_text(self.width)} {_text(height)}")
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, kind: str, **attributes: Number | str) -> ElementTree.Element:
        written = {"class": kind} if kind else {}
        written |= {name.replace("_", "-"): _text(value) for name, value in attributes.items()}
        return ElementTree.SubElement(self._into[-1], tag, written)


def clean(text: str) -> str:
    """The text on one line, without what neither XML nor a reader can take."""
    return "".join(map(_clean_letter, text))


def _clean_letter(letter: str) -> str:
    if letter in "\t\n\r":
        return " "
    unfit = unicodedata.category(letter) in ("Cc", "Cs") or letter in "\ufffe\uffff"
    return "\N{REPLACEMENT CHARACTER}" if unfit else letter


def width_of(text: str, size: Number) -> float:
    """About how wide a text is in a font of ``size`` units: nothing is clipped if it fits."""
    return sum(_EM[_kind_of(letter)] for letter in text) * size


def fit(text: str, width: Number, size: Number) -> str:
    """The text, or its beginning and end around an ellipsis where it is wider than ``width``."""
    if width_of(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and width_of(_shorten(text, keep), size) > width:
        keep -= 1
    return _shorten(text, keep)


def _shorten(text: str, keep: int) -> str:
    end = keep // 2
    return f"{text[: keep - end]}…{text[len(text) - end :]}"


def _kind_of(letter: str) -> str:
    if unicodedata.east_asian_width(letter) in "WF":
        return "wide"
    if letter.isupper() or letter in "mwMW%@…—":
        return "capital"
    return "narrow" if letter in " .,:;'|!()[]ijlt·" else "other"


def _text(value: str | Number) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
