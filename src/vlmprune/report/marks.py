"""Matplotlib's markers as shapes for the page, so that a method looks the same in a table as in a plot."""

from __future__ import annotations

from vlmprune.report.plots import INK, Style

# Paths around the origin, 10 units across. The crosses have no area: they are drawn by their outline.
PATHS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "^": "M0 -4.6L4.6 4H-4.6z",
    "v": "M0 4.6L4.6 -4H-4.6z",
    "<": "M-4.6 0L4 -4.6V4.6z",
    ">": "M4.6 0L-4 -4.6V4.6z",
    "D": "M0 -5L5 0L0 5L-5 0z",
    "d": "M0 -5L3 0L0 5L-3 0z",
    "s": "M-4 -4H4V4H-4z",
    "P": "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7z",
    "h": "M0 -5L4.3 -2.5V2.5L0 5L-4.3 2.5V-2.5z",
    "p": "M0 -5L4.8 -1.5L2.9 4H-2.9L-4.8 -1.5z",
    "*": "M0 -5L1.2 -1.6H4.8L1.9 .6L2.9 4L0 1.9L-2.9 4L-1.9 .6L-4.8 -1.6H-1.2z",
    "x": "M-4 -4L4 4M4 -4L-4 4",
    "+": "M0 -5V5M-5 0H5",
}


def ink(style: Style) -> str:
    """Its colour on the page, whose own ink is dark or light."""
    return style.color.replace(INK, "var(--ink)")


def mark(style: Style, scale: float = 1.0) -> str:
    """The marker as an SVG path around the origin."""
    drawn = "fill:none;stroke-width:2" if style.marker in "x+" else "stroke:none"
    size = "" if scale == 1 else f' transform="scale({scale:g})"'
    return f'<path d="{PATHS[style.marker]}"{size} style="color:{ink(style)};{drawn}"/>'
