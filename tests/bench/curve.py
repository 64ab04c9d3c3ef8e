"""Line charts as SVG, readable on a light page and on a dark one."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 44, 52
COLOURS = (("#0b6bcb", "#6cb6ff"), ("#b35900", "#f0a04b"), ("#7a4fbf", "#c7a6ff"), ("#3f7f4f", "#7fd39a"))
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 15px }
.axis { stroke: #59636e; fill: none } .grid { stroke: #d1d9e0 } .limit { stroke: #cf222e; stroke-dasharray: 5 4 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .axis { stroke: #9198a1 } .grid { stroke: #30363d } .limit { stroke: #ff7b72 } }
"""


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[tuple[float, float]]


def draw(title: str, x: str, y: str, curves: Sequence[Curve], *, top: float, limit: float | None = None) -> str:
    """`x` and `y` name the axes with their units; what is above `top` leaves the picture there."""
    right = max(place for curve in curves for place, _ in curve.points)
    plane = _Plane(right, top)
    parts = [*_axes(plane, title, x, y)]
    if limit is not None:
        parts.append(_line("limit", *plane.at(0, limit), *plane.at(right, limit)))
        parts.append(_text(WIDTH - RIGHT + 8, plane.at(0, limit)[1] + 4, f"goal: {limit:g} {y}"))
    for number, curve in enumerate(curves):
        parts += _curve(plane, number, curve)
    colours = [
        f".c{number} {{ stroke: {light} }} .d{number} {{ fill: {light} }}" for number, (light, _) in enumerate(COLOURS)
    ]
    dark = [f".c{number} {{ stroke: {of} }} .d{number} {{ fill: {of} }}" for number, (_, of) in enumerate(COLOURS)]
    style = f"{_STYLE}{' '.join(colours)}\n@media (prefers-color-scheme: dark) {{ {' '.join(dark)} }}\n</style>"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, style, *parts, "</svg>\n"])


@dataclass(frozen=True)
class _Plane:
    right: float
    top: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / self.right * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - y / self.top * (HEIGHT - TOP - BOTTOM), 1)


def _axes(plane: _Plane, title: str, x: str, y: str) -> list[str]:
    parts = [f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>']
    for share in range(5):
        value = plane.top * share / 4
        parts.append(_line("grid", *plane.at(0, value), *plane.at(plane.right, value)))
        parts.append(_text(LEFT - 8, plane.at(0, value)[1] + 4, f"{value:g}", "end"))
        value = plane.right * share / 4
        parts.append(_text(plane.at(value, 0)[0], HEIGHT - BOTTOM + 20, f"{value:g}", "middle"))
    parts.append(_line("axis", *plane.at(0, 0), *plane.at(plane.right, 0)))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x, "middle"))
    parts.append(_text(LEFT - 8, TOP - 8, y, "end"))
    return parts


def _curve(plane: _Plane, number: int, curve: Curve) -> list[str]:
    inside: list[tuple[float, float]] = []
    for (x, y), before in zip(curve.points, [None, *curve.points], strict=False):
        if y > plane.top:
            if before is not None:
                share = (plane.top - before[1]) / (y - before[1])
                inside.append(plane.at(before[0] + share * (x - before[0]), plane.top))
            break
        inside.append(plane.at(x, y))
    across = 26 + 20 * number
    path = " ".join(f"{x},{y}" for x, y in inside)
    dots = [f'<circle class="d{number}" cx="{x}" cy="{y}" r="3"/>' for x, y in inside]
    key_x, key_y = WIDTH - RIGHT + 8, TOP + across - 26
    key = [f'<line class="line c{number}" x1="{key_x}" y1="{key_y}" x2="{key_x + 18}" y2="{key_y}"/>']
    key.append(_text(key_x + 24, key_y + 4, curve.name))
    return [f'<polyline class="line c{number}" points="{path}"/>', *dots, *key]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
