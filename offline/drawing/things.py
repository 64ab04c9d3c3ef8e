"""Things that are not alive: each drawn around its foot (scenery, objects) or its middle (in the sky)."""

from collections.abc import Callable
from math import cos, radians, sin

from offline.drawing.shapes import Color, Pen, Point, darker, lighter

_INK: Color = (52, 44, 58)

Draw = Callable[[Pen, Color], None]


def sun(pen: Pen, color: Color) -> None:
    pen.circle(0, 0, 15, lighter(color, 0.3), 70)
    for angle in range(0, 360, 30):
        x, y = cos(radians(angle)), sin(radians(angle))
        pen.line([(x * 11.5, y * 11.5), (x * 16, y * 16)], 1.5, color)
    pen.circle(0, 0, 9, color)
    pen.circle(-2.5, -2.5, 4, lighter(color, 0.5), 120)


def moon(pen: Pen, color: Color) -> None:
    pen.circle(0, 0, 14, color, 50)
    pen.circle(0, 0, 9, color)
    for x, y, radius in ((-3, -2, 1.8), (2.5, 3, 2.4), (3.5, -4, 1.2)):
        pen.circle(x, y, radius, darker(color, 0.14))


def star(pen: Pen, color: Color) -> None:
    points: list[Point] = []
    for corner in range(10):
        radius = 8 if corner % 2 == 0 else 3.4
        angle = radians(corner * 36 - 90)
        points.append((radius * cos(angle), radius * sin(angle)))
    pen.polygon(points, color)


def cloud(pen: Pen, color: Color) -> None:
    for x, y, radius in ((-9, 1, 6), (-2, -3, 8), (7, -0.5, 6.5), (13, 2, 4.5)):
        pen.circle(x, y, radius, color)
    pen.ellipse(2, 4, 14, 3.6, color)


def rocket(pen: Pen, color: Color) -> None:
    pen.polygon([(-4, 10), (4, 10), (0, 20)], (250, 170, 60))
    for side in (-1, 1):
        pen.polygon([(side * 6, 2), (side * 13, 12), (side * 5, 10)], darker(color))
    pen.ellipse(0, -2, 7.5, 14, (240, 240, 246))
    pen.polygon([(-6, -10), (6, -10), (0, -20)], color)
    pen.circle(0, -3, 3.4, darker(color, 0.2))
    pen.circle(0, -3, 2.3, (150, 214, 240))


def balloon(pen: Pen, color: Color) -> None:
    pen.line([(0, 12), (1.5, 20), (-1.5, 28)], 0.6, _INK)
    pen.ellipse(0, 0, 10, 12, color)
    pen.polygon([(-2, 14), (2, 14), (0, 11)], darker(color))
    pen.ellipse(-3.5, -4.5, 2.5, 4, lighter(color, 0.6), 150)


def mountain(pen: Pen, color: Color) -> None:
    pen.polygon([(-36, 0), (-10, -46), (14, 0)], darker(color, 0.12))
    pen.polygon([(-14.5, -38), (-10, -46), (-5.8, -38), (-8, -35), (-10.5, -38), (-12.5, -35)], (250, 250, 255))
    pen.polygon([(-12, 0), (16, -36), (40, 0)], color)
    pen.polygon([(11, -29.5), (16, -36), (20.7, -29), (18, -26), (15.5, -29), (13, -26.5)], (250, 250, 255))


def tree(pen: Pen, color: Color) -> None:
    pen.ellipse(0, 0, 11, 2, _INK, 45)
    pen.polygon([(-2.6, 0), (2.6, 0), (1.6, -24), (-1.6, -24)], (122, 84, 58))
    for x, y, radius in ((-8, -24, 8.5), (8, -25, 8.5), (0, -34, 11), (0, -24, 9)):
        pen.circle(x, y, radius, color)
    pen.circle(-3, -37, 5, lighter(color, 0.3), 110)


def house(pen: Pen, color: Color) -> None:
    pen.ellipse(0, 0, 24, 2.6, _INK, 40)
    pen.box(9, -45, 5, 14, (150, 92, 80))
    pen.box(-18, -24, 36, 24, color)
    pen.polygon([(-22, -24), (22, -24), (0, -44)], (178, 84, 74))
    pen.box(-4, -14, 8, 14, (118, 80, 60))
    for side in (-1, 1):
        pen.box(side * 11 - 3.5, -18, 7, 7, (255, 232, 158))
        pen.line([(side * 11, -18), (side * 11, -11)], 0.7, _INK)


def lighthouse(pen: Pen, color: Color) -> None:
    pen.polygon([(2, -53), (34, -62), (34, -46)], (255, 240, 180), 90)
    pen.polygon([(-7, 0), (7, 0), (4.6, -46), (-4.6, -46)], (248, 246, 242))
    for low, high, wide in ((-8, -16, 6.3), (-24, -32, 5.5), (-40, -46, 4.8)):
        pen.polygon([(-wide, low), (wide, low), (wide - 0.4, high), (-wide + 0.4, high)], color)
    pen.box(-4, -53, 8, 7, (255, 232, 140))
    pen.polygon([(-6, -53), (6, -53), (0, -60)], darker(color))


def castle(pen: Pen, color: Color) -> None:
    pen.box(-20, -26, 40, 26, color)
    for x in (-20, 0, 20):
        pen.box(x - 6, -38, 12, 38, darker(color, 0.08))
        pen.polygon([(x - 7.5, -38), (x + 7.5, -38), (float(x), -52)], (138, 100, 170))
        pen.ellipse(x, -30, 1.8, 2.8, (70, 62, 90))
    pen.ellipse(0, -6, 4.5, 7, (110, 78, 60))


def flower(pen: Pen, color: Color) -> None:
    pen.line([(0, 0), (0.8, -10), (0, -20)], 1.5, (92, 150, 82))
    pen.ellipse(4.5, -8, 4.5, 1.9, (112, 172, 96))
    for angle in range(0, 360, 60):
        pen.circle(6 * cos(radians(angle)), -23 + 6 * sin(radians(angle)), 4, color)
    pen.circle(0, -23, 3.8, (250, 206, 92))


def mushroom(pen: Pen, color: Color) -> None:
    pen.polygon([(-5, 0), (5, 0), (4, -14), (-4, -14)], (248, 236, 216))
    pen.ellipse(0, -15, 15, 4.5, darker(color, 0.15))
    pen.polygon([(-15, -15), (-11, -24), (0, -29), (11, -24), (15, -15)], color)
    for x, y, radius in ((-7, -19, 2), (1, -24, 2.4), (8, -18.5, 1.7)):
        pen.circle(x, y, radius, (255, 250, 244))


def boat(pen: Pen, color: Color) -> None:
    pen.line([(0, -6), (0, -40)], 1.4, (110, 80, 60))
    pen.polygon([(1.5, -38), (1.5, -11), (19, -11)], (252, 248, 240))
    pen.polygon([(-1.5, -33), (-1.5, -11), (-13, -11)], lighter(color, 0.5))
    pen.polygon([(-22, -8), (22, -8), (15, 2), (-15, 2)], color)


def car(pen: Pen, color: Color) -> None:
    pen.ellipse(0, 0, 26, 2.4, _INK, 45)
    pen.polygon([(-14, -13), (-8, -22), (9, -22), (16, -13)], lighter(color, 0.2))
    pen.polygon([(-10.5, -13.5), (-6.5, -20), (0, -20), (0, -13.5)], (206, 234, 246))
    pen.polygon([(1.5, -13.5), (1.5, -20), (7.5, -20), (12, -13.5)], (206, 234, 246))
    pen.box(-24, -13.5, 48, 9.5, color)
    pen.circle(22, -10, 1.8, (255, 238, 160))
    for x in (-13, 13):
        pen.circle(x, -4, 4.8, _INK)
        pen.circle(x, -4, 2, (214, 214, 220))


def fish(pen: Pen, color: Color) -> None:
    pen.polygon([(11, -14), (23, -23), (23, -5)], darker(color, 0.15))
    pen.polygon([(-3, -22), (6, -29), (8, -19)], darker(color, 0.15))
    pen.ellipse(0, -14, 16, 9.5, color)
    pen.ellipse(-1, -11, 11, 5, lighter(color, 0.4), 130)
    pen.circle(-8.5, -16, 2.6, (255, 255, 255))
    pen.circle(-9, -16, 1.4, _INK)


def heart(pen: Pen, color: Color) -> None:
    pen.circle(-6.5, -20, 7.6, color)
    pen.circle(6.5, -20, 7.6, color)
    pen.polygon([(-13.4, -17), (13.4, -17), (0, -1)], color)
    pen.circle(-8, -22.5, 2.4, lighter(color, 0.6), 160)


def cup(pen: Pen, color: Color) -> None:
    pen.ellipse(0, 0, 17, 2.8, lighter(_INK, 0.6))
    pen.arc(11, -10, 6, -90, 90, 2.6, darker(color, 0.1))
    pen.polygon([(-12, -19), (12, -19), (8.5, -1), (-8.5, -1)], color)
    pen.ellipse(0, -19, 12, 3, lighter(color, 0.5))
    pen.ellipse(0, -19, 10, 2.2, (112, 74, 52))
    for x in (-4, 2):
        pen.line([(x, -24.0), (x + 2, -28), (x, -32)], 1.1, (255, 255, 255), 150)


def cake(pen: Pen, color: Color) -> None:
    pen.ellipse(0, 0, 22, 3.4, (244, 240, 236))
    pen.box(-17, -15, 34, 14, lighter(color, 0.25))
    pen.box(-12, -26, 24, 11, color)
    for x in (-8, 0, 8):
        pen.circle(x, -26, 3.2, (255, 250, 244))
        pen.line([(x, -29.0), (x, -35)], 1.3, (120, 170, 220))
        pen.ellipse(x, -37, 1.2, 2, (255, 196, 80))


# name -> how it is drawn, in which colour unless the prompt names one.
SKY: dict[str, tuple[Draw, Color]] = {
    "sun": (sun, (252, 198, 74)),
    "moon": (moon, (250, 240, 206)),
    "star": (star, (255, 226, 128)),
    "cloud": (cloud, (255, 255, 255)),
    "rocket": (rocket, (228, 84, 80)),
    "balloon": (balloon, (232, 92, 100)),
}
SCENERY: dict[str, tuple[Draw, Color]] = {
    "mountain": (mountain, (132, 140, 170)),
    "tree": (tree, (104, 162, 92)),
    "house": (house, (240, 214, 176)),
    "lighthouse": (lighthouse, (214, 78, 76)),
    "castle": (castle, (190, 186, 204)),
}
OBJECTS: dict[str, tuple[Draw, Color]] = {
    "flower": (flower, (236, 120, 150)),
    "mushroom": (mushroom, (214, 72, 70)),
    "boat": (boat, (196, 92, 76)),
    "car": (car, (222, 88, 82)),
    "fish": (fish, (246, 150, 72)),
    "heart": (heart, (228, 76, 104)),
    "cup": (cup, (120, 170, 200)),
    "cake": (cake, (240, 170, 190)),
}
