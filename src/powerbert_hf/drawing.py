# Copyright 2026 The powerbert_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures as SVG, in the reader's light or dark colours: the canvas, and the words that survive."""

import math
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from .files import whole_file
from .inspection import Explanation, Word
from .terminal import GONE, columns, format_answer, shortened, what_is_left

# Property, value in light and in dark, of each class that a picture's shapes have.
STYLE = {
    "paper": ("fill", "#ffffff", "#12161c"),
    "ink": ("fill", "#1b1f24", "#e8ecf1"),
    "soft": ("fill", "#57606a", "#a2acb8"),
    "faint": ("fill", "#8c959f", "#6b7683"),
    "rule": ("stroke", "#d5dae0", "#343c46"),
    "track": ("fill", "#eceff3", "#232a33"),
    "mark": ("fill", "#0b7285", "#3bc9db"),
    "edge": ("stroke", "#0b7285", "#3bc9db"),
    "warm": ("fill", "#b35900", "#ffa94d"),
    "warm-edge": ("stroke", "#b35900", "#ffa94d"),
    "tint": ("fill", "#22b8cf", "#15aabf"),
}
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
_SIZE = 13.0
# Of a monospaced letter of that size.
_LETTER = 0.602 * _SIZE
_WIDTH = 760.0


def style_rules() -> str:
    """CSS of the classes, light and dark."""
    light, dark = ("".join(f".{name}{{{rule[0]}:{rule[place]}}}" for name, rule in STYLE.items()) for place in (1, 2))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


class Canvas:
    """An SVG picture.

    Args:
        width: in pixels; it shrinks where there is less room.
        height: in pixels.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.root = ElementTree.Element("svg", viewBox=f"0 0 {_number(width)} {_number(height)}", role="img")
        self.root.set("aria-label", title)
        self.width, self.height = width, height

    def add(self, tag: str, kind: str = "", **attributes: float | str) -> ElementTree.Element:
        """A shape of a class; underscores of attributes stand for dashes."""
        shape = ElementTree.SubElement(self.root, tag)
        if kind:
            shape.set("class", kind)
        for name, value in attributes.items():
            shape.set(name.replace("_", "-"), value if isinstance(value, str) else _number(value))
        return shape

    def text(self, x: float, y: float, words: str, kind: str = "ink", **attributes: float | str) -> None:
        """Words that begin at x, or as `text_anchor` says."""
        self.add("text", kind, x=x, y=y, **attributes).text = words

    def inline(self) -> str:
        """For a page that has the rules of the classes."""
        return ElementTree.tostring(self.root, encoding="unicode")

    def file(self) -> str:
        """For a file of its own."""
        root = ElementTree.Element("svg", {**self.root.attrib, "xmlns": "http://www.w3.org/2000/svg"})
        root.set("width", _number(self.width))
        root.set("height", _number(self.height))
        root.set("font-family", SANS)
        ElementTree.SubElement(root, "style").text = style_rules()
        ElementTree.SubElement(root, "rect", {"class": "paper", "width": "100%", "height": "100%"})
        root.extend(self.root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def check_picture(path: str) -> None:
    """Refuse a picture that cannot be written, before the work that it shows is done.

    Args:
        path: of the picture; its ending is the format.

    Raises:
        ValueError: for an ending that is none of a picture's.
        ImportError: for a png where nothing can make one, with the command that installs it.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise ValueError(f"A picture must end in .svg or .png, got {path}; choose another name.")
    if ending == ".png" and find_spec("resvg_py") is None:
        raise ImportError("A png needs resvg_py, got none; run `pip install 'powerbert_hf[plot]'`, or write an svg.")


def save_picture(canvas: Canvas, path: str) -> None:
    """Write a picture as svg, or, twice as large, as png in its light colours.

    Args:
        canvas: the picture.
        path: its ending is the format.
    """
    check_picture(path)
    with whole_file(Path(path)) as file:
        if path.lower().endswith(".png"):
            from resvg_py import svg_to_bytes

            file.buffer.write(bytes(svg_to_bytes(svg_string=canvas.file(), zoom=2)))
        else:
            file.write(canvas.file())


def draw_explanation(explanation: Explanation) -> Canvas:
    """Row by row, one an encoder, the words that leave it; the deeper their ground, the more attention they received.

    Args:
        explanation: from `inspection.explain`.
    """
    rows = [set(range(len(explanation.tokens))), *map(set, explanation.kept)]
    names = ["input", *(f"encoder {encoder}" for encoder in range(1, len(rows)))]
    left, top, height, gap, pad = 122.0, 14.0, 25.0, 6.0, 5.0
    blocks: list[list[tuple[Word, float, float]]] = [[]]
    x = left
    for word in explanation.words:
        width = columns(shortened(word.text)) * _LETTER + 2 * pad
        if blocks[-1] and x + width > _WIDTH - 8:
            blocks.append([])
            x = left
        blocks[-1].append((word, x, width))
        x += width + 2
    block_height = len(rows) * height + 2 * gap
    shown = format_answer(explanation.answer)
    canvas = Canvas(_WIDTH, top + len(blocks) * block_height + 26, f"Words that leave each encoder. Answer: {shown}")
    for number, block in enumerate(blocks):
        for row, (name, kept) in enumerate(zip(names, rows, strict=True)):
            base = top + number * block_height + row * height
            canvas.text(14, base + 17, name, "soft", font_size=12)
            canvas.text(left - 12, base + 17, str(len(kept)), "soft", font_size=12, text_anchor="end")
            strength = attention_share(explanation, row - 1) if row else {}
            for word, x, width in block:
                shown_text = what_is_left(word, kept)
                middle = x + width / 2
                if not shown_text:
                    canvas.text(middle, base + 18, GONE, "faint", font_size=18, text_anchor="middle")
                    continue
                share = max(strength.get(position, 0.0) for position in word.positions)
                if row:
                    box = {"x": x, "y": base + 1, "width": width, "height": height - 3, "rx": 4.0}
                    canvas.add("rect", "tint", fill_opacity=0.08 + 0.42 * share, **box)
                canvas.text(
                    middle,
                    base + 17,
                    shortened(shown_text),
                    "ink",
                    font_size=_SIZE,
                    text_anchor="middle",
                    font_family=MONOSPACE,
                )
    y = top + len(blocks) * block_height + 6
    canvas.text(14, y, "classifier", "soft", font_size=12)
    canvas.text(left, y, f"{shown}{', its end cut' if explanation.cut else ''}", "ink", font_size=_SIZE)
    return canvas


def attention_share(explanation: Explanation, encoder: int) -> dict[int, float]:
    """How near each word-vector that enters an encoder comes to the most significant one: 0 to 1, by position.

    The root of the ratio: a few word-vectors, [SEP] above all, receive many times as much as the others.
    """
    received = explanation.significance[encoder]
    most = max(received) or 1.0
    return {
        position: math.sqrt(max(0.0, value) / most)
        for position, value in zip(explanation.entered[encoder], received, strict=True)
    }
