"""Flat drawing: an image is a list of shapes, rendered to pixels or to SVG.

Lengths are in units of a stage whose shorter side is 100; y grows downwards.
"""

import hashlib
from dataclasses import dataclass, field
from html import escape
from math import cos, radians, sin
from typing import Any, cast

from PIL import Image, ImageDraw

from offline.drawing.fonts import font_for

Color = tuple[int, int, int]
Point = tuple[float, float]

STAGE = 100.0


@dataclass(frozen=True)
class Ellipse:
    center: Point
    radii: Point
    fill: Color
    alpha: int = 255


@dataclass(frozen=True)
class Polygon:
    points: tuple[Point, ...]
    fill: Color
    alpha: int = 255


@dataclass(frozen=True)
class Line:
    points: tuple[Point, ...]
    width: float
    fill: Color
    alpha: int = 255


@dataclass(frozen=True)
class Text:
    corner: Point  # top left
    height: float
    words: str
    fill: Color
    alpha: int = 255


Shape = Ellipse | Polygon | Line | Text


@dataclass
class Pen:
    """Draws around an origin: `pen.at(x, y, scale)` gives one for the next subject, onto the same list."""

    shapes: list[Shape] = field(default_factory=list[Shape])
    x: float = 0
    y: float = 0
    scale: float = 1

    def at(self, x: float, y: float, scale: float = 1) -> "Pen":
        return Pen(self.shapes, *self._place((x, y)), self.scale * scale)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, alpha: int = 255) -> None:
        self.shapes.append(Ellipse(self._place((x, y)), (rx * self.scale, ry * self.scale), fill, alpha))

    def circle(self, x: float, y: float, radius: float, fill: Color, alpha: int = 255) -> None:
        self.ellipse(x, y, radius, radius, fill, alpha)

    def pair(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """The same ellipse left and right of the origin."""
        for side in (-1, 1):
            self.ellipse(side * x, y, rx, ry, fill)

    def polygon(self, points: list[Point], fill: Color, alpha: int = 255) -> None:
        self.shapes.append(Polygon(tuple(self._place(point) for point in points), fill, alpha))

    def line(self, points: list[Point], width: float, fill: Color, alpha: int = 255) -> None:
        self.shapes.append(Line(tuple(self._place(point) for point in points), width * self.scale, fill, alpha))

    def arc(self, x: float, y: float, radius: float, start: float, end: float, width: float, fill: Color) -> None:
        """A bow; degrees run clockwise from the right."""
        steps = [start + (end - start) * step / 16 for step in range(17)]
        self.line([(x + radius * cos(radians(a)), y + radius * sin(radians(a))) for a in steps], width, fill)

    def box(self, x: float, y: float, width: float, height: float, fill: Color, alpha: int = 255) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill, alpha)

    def text(self, x: float, y: float, height: float, words: str, fill: Color) -> None:
        self.shapes.append(Text(self._place((x, y)), height * self.scale, words, fill))

    def _place(self, point: Point) -> Point:
        return self.x + point[0] * self.scale, self.y + point[1] * self.scale


def mix(first: Color, second: Color, share: float) -> Color:
    """`share` of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def lighter(color: Color, share: float = 0.3) -> Color:
    return mix(color, (255, 255, 255), share)


def darker(color: Color, share: float = 0.3) -> Color:
    return mix(color, (20, 16, 30), share)


def seed_of(text: str) -> int:
    """The same number for the same text, in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def render(image: Image.Image, shapes: list[Shape], *, solid_only: bool = False) -> None:
    """Draw onto an RGB image, or with `solid_only` the outlines of the opaque shapes onto an L mask."""
    unit = min(image.size) / STAGE
    draw = ImageDraw.Draw(image, "RGBA" if image.mode == "RGB" else image.mode)
    for shape in shapes:
        if solid_only and shape.alpha < 255:
            continue
        fill = 255 if solid_only else (*shape.fill, shape.alpha)
        match shape:
            case Ellipse((x, y), (rx, ry)):
                draw.ellipse([(x - rx) * unit, (y - ry) * unit, (x + rx) * unit, (y + ry) * unit], fill=fill)
            case Polygon(points):
                draw.polygon([(x * unit, y * unit) for x, y in points], fill=fill)
            case Line(points, width):
                _line(draw, [(x * unit, y * unit) for x, y in points], max(1, round(width * unit)), fill)
            case Text((x, y), height, words):
                if font := font_for(words, max(8, round(height * unit))):
                    # By the baseline: the fonts differ in how much room they leave above their letters.
                    baseline = (y + height * 0.93) * unit
                    draw.text((x * unit, baseline), words, font=font, fill=fill, anchor="ls")


def stretched(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    # Pillow types `resize` with the help of numpy, which is not installed.
    return cast(Any, image).resize(size, how)


def text_width(words: str, height: float) -> float:
    """How wide a text of that height is, in the same unit; 0 where no font has its characters."""
    font = font_for(words, 100)
    return font.getlength(words) * height / 100 if font else 0


def to_svg(shapes: list[Shape]) -> str:
    """The shapes as SVG elements, one a line."""
    return "\n".join(_svg_element(shape) for shape in shapes)


def _line(draw: ImageDraw.ImageDraw, points: list[Point], width: int, fill: int | tuple[int, ...]) -> None:
    draw.line(points, fill=fill, width=width, joint="curve")
    for x, y in (points[0], points[-1]) if width > 2 else ():
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=fill)


def _svg_element(shape: Shape) -> str:
    paint = f'fill="#{bytes(shape.fill).hex()}"' + (f' opacity="{shape.alpha / 255:.2f}"' if shape.alpha < 255 else "")
    match shape:
        case Ellipse((x, y), (rx, ry)):
            return f'<ellipse cx="{x:.2f}" cy="{y:.2f}" rx="{rx:.2f}" ry="{ry:.2f}" {paint}/>'
        case Polygon(points):
            return f'<polygon points="{_svg_points(points)}" {paint}/>'
        case Line(points, width):
            stroke = paint.replace("fill=", "stroke=", 1)
            style = f'fill="none" stroke-width="{width:.2f}" stroke-linecap="round" stroke-linejoin="round"'
            return f'<polyline points="{_svg_points(points)}" {style} {stroke}/>'
        case Text((x, y), height, words):
            style = f'font-family="sans-serif" font-size="{height:.2f}"'
            return f'<text x="{x:.2f}" y="{y + height:.2f}" {style} {paint}>{escape(words)}</text>'


def _svg_points(points: tuple[Point, ...]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
