"""A chart of ratios as SVG: a group of bars for each workload, on a logarithmic scale around 1."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BAR, GAP, LEFT, RIGHT, TOP, BOTTOM, WIDTH = 9, 10, 150, 60, 60, 30, 860
COLOURS = ("#4269d0", "#6cc5b0", "#3ca951", "#ff725c", "#efb118", "#9c6b4e", "#97bbf5", "#9498a0", "#a463f2")


def chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """The ratios by group and series, such as workload and service; all are above 0."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [value for group in groups.values() for value in group.values()] or [1.0]
    low, high = floor(min(0.0, log10(min(values)))), ceil(max(0.0, log10(max(values))))
    scale = _Scale(low, max(high, low + 1))
    top = TOP + 14 * len(series)
    bottom = top + sum(len(group) * BAR + GAP for group in groups.values())
    parts = [
        *_head(title, series),
        *scale.axis(top, bottom),
        *_bars(groups, series, scale, top),
    ]
    size = f'width="{WIDTH}" height="{bottom + BOTTOM}"'
    style = 'font-family="sans-serif" font-size="11"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{body}\n</svg>\n'


class _Scale:
    """From 10^low at the left to 10^high."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def x(self, value: float) -> float:
        """Where a value is."""
        share = (log10(value) - self._low) / (self._high - self._low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def axis(self, top: int, bottom: int) -> Iterator[str]:
        """A line for each power of ten, that of 1 a strong one."""
        for power in range(self._low, self._high + 1):
            x, colour = self.x(10.0**power), "#333" if power == 0 else "#ccc"
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{colour}"/>'
            yield _text(x, bottom + 16, f"{10.0**power:g}", "middle")


def _head(title: str, series: list[str]) -> Iterator[str]:
    yield f'<text x="10" y="24" font-size="15">{escape(title)}</text>'
    for index, name in enumerate(series):
        y = 48 + 14 * index
        yield f'<rect x="{LEFT}" y="{y - 8}" width="10" height="{BAR}" fill="{_colour(index)}"/>'
        yield _text(LEFT + 16, y, name, "start")


def _bars(groups: Mapping[str, Mapping[str, float]], series: list[str], scale: _Scale, top: int) -> Iterator[str]:
    y, one = float(top), scale.x(1.0)
    for label, group in groups.items():
        yield _text(LEFT - 8, y + len(group) * BAR / 2 + 4, label, "end")
        for name, value in group.items():
            x, colour = scale.x(value), _colour(series.index(name))
            width = max(abs(x - one), 1.0)
            yield f'<rect x="{min(x, one):.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>'
            yield _text(max(x, one) + 4, y + BAR - 1, f"{value:.2f}", "start")
            y += BAR
        y += GAP


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
