"""Animals and a robot, drawn around their feet: 60 units high, looking at us."""

from dataclasses import dataclass, replace

from offline.drawing.shapes import Color, Pen, darker, lighter, mix

_INK: Color = (52, 44, 58)
_ROSE: Color = (240, 150, 150)
_CREAM: Color = (250, 240, 224)


@dataclass(frozen=True)
class Look:
    """How a creature differs from the others."""

    fur: Color
    ears: str = "round"  # round, pointed, long, floppy, tufts
    belly: Color = _CREAM
    nose: Color = _INK
    stripes: bool = False
    whiskers: bool = False
    tail: str = "short"  # short, long, bushy, flat
    patches: bool = False  # dark eyes, ears and arms, as a panda has
    beak: bool = False
    worn: tuple[tuple[str, Color], ...] = ()  # (scarf | hat | crown | bow | glasses, colour)
    hug: int = 0  # arms reach to the left (-1) or to the right (1)


CREATURES: dict[str, Look] = {
    "cat": Look((172, 166, 170), ears="pointed", nose=_ROSE, whiskers=True, tail="long"),
    "kitten": Look((226, 160, 92), ears="pointed", nose=_ROSE, whiskers=True, tail="long", stripes=True),
    "tiger": Look((240, 158, 62), ears="round", nose=_ROSE, whiskers=True, tail="long", stripes=True),
    "otter": Look((134, 96, 70), ears="round", belly=(222, 196, 164), whiskers=True, tail="flat"),
    "bear": Look((142, 98, 66), belly=(206, 170, 130)),
    "panda": Look((244, 242, 240), belly=(244, 242, 240), patches=True),
    "dog": Look((198, 148, 96), ears="floppy", tail="long"),
    "puppy": Look((222, 184, 136), ears="floppy", tail="long"),
    "rabbit": Look((214, 200, 192), ears="long", nose=_ROSE),
    "bunny": Look((232, 222, 216), ears="long", nose=_ROSE),
    "fox": Look((226, 118, 52), ears="pointed", tail="bushy"),
    "mouse": Look((176, 172, 180), ears="round", nose=_ROSE, whiskers=True, tail="long"),
    "owl": Look((150, 116, 84), ears="tufts", beak=True),
    "bird": Look((98, 158, 214), ears="none", beak=True),
    "penguin": Look((64, 68, 88), ears="none", beak=True, belly=(250, 250, 250)),
    "frog": Look((112, 178, 90), ears="round", belly=(216, 234, 176), tail="none"),
}
WORN = ("scarf", "hat", "crown", "bow", "glasses")


def draw_creature(pen: Pen, look: Look) -> None:
    pen.ellipse(0, 0, 19, 3.2, _INK, 45)
    _tail(pen, look)
    arm = _INK if look.patches else darker(look.fur, 0.12)
    pen.ellipse(0, -17, 15.5, 18, look.fur)
    pen.ellipse(0, -14, 10, 13, look.belly)
    pen.pair(8, -2, 6.2, 3.4, arm)
    if look.stripes:
        for height in (-27, -22, -17):
            for side in (-1, 1):
                pen.line([(side * 14.5, height), (side * 10.5, height + 1)], 1.3, darker(look.fur, 0.4))
    _arms(pen, look, arm)
    _ears(pen, look)
    pen.ellipse(0, -44, 17.5, 15, look.fur)
    pen.ellipse(-5, -51, 8, 4.5, lighter(look.fur, 0.35), 90)
    _face(pen, look)
    for thing, color in look.worn:
        wear(pen, thing, color)


def creature(name: str, color: Color | None, *, stripes: bool) -> Look:
    look = CREATURES[name]
    fur = mix(look.fur, color, 0.8) if color else look.fur
    return replace(look, fur=fur, stripes=look.stripes or stripes)


def draw_robot(pen: Pen, color: Color | None) -> None:
    steel = color or (150, 168, 184)
    pen.ellipse(0, 0, 18, 3, _INK, 45)
    for side in (-1, 1):
        pen.box(side * 7 - 3, -10, 6, 9, darker(steel))
        pen.ellipse(side * 7, -1.5, 5.5, 2.6, darker(steel, 0.5))
        pen.line([(side * 14, -27), (side * 20, -18)], 3.4, darker(steel))
        pen.circle(side * 20.5, -16, 3, lighter(steel))
    pen.box(-14, -34, 28, 25, steel)
    pen.box(-9, -29, 18, 12, lighter(steel, 0.5))
    for index, light in enumerate(((236, 96, 88), (244, 196, 84), (110, 190, 120))):
        pen.circle(-5 + index * 5, -23, 1.8, light)
    pen.line([(0, -57), (0, -64)], 1.2, darker(steel))
    pen.circle(0, -65, 2.2, (236, 96, 88))
    pen.box(-16, -57, 32, 21, lighter(steel, 0.2))
    pen.pair(7, -48, 4.6, 4.6, (40, 52, 70))
    pen.pair(7, -48, 2.4, 2.4, (120, 220, 240))
    pen.line([(-6, -40.5), (6, -40.5)], 1.3, (40, 52, 70))


def wear(pen: Pen, thing: str, color: Color) -> None:
    dark = darker(color, 0.22)
    match thing:
        case "scarf":
            pen.line([(9, -30), (12, -15)], 6.5, dark)
            for stripe in (-19, -23):
                pen.line([(9.4, stripe), (13.4, stripe - 0.6)], 1, lighter(color, 0.4))
            pen.line([(-12.5, -31), (0, -28.4), (12.5, -31)], 7, color)
            pen.circle(9.5, -29.5, 4, color)
        case "hat":
            pen.ellipse(0, -57.5, 17, 3, dark)
            pen.box(-9.5, -72, 19, 14, color)
            pen.box(-9.5, -62, 19, 3, lighter(color, 0.5))
        case "crown":
            points = [(-10, -57), (-12, -69), (-5.5, -63), (0, -71), (5.5, -63), (12, -69), (10, -57)]
            pen.polygon([(float(x), float(y)) for x, y in points], color)
            pen.circle(0, -60, 1.6, (220, 70, 90))
        case "bow":
            for side in (-1, 1):
                pen.polygon([(0, -28.5), (side * 9, -33), (side * 9, -24)], color)
            pen.circle(0, -28.5, 2.4, dark)
        case _:
            for side in (-1, 1):
                pen.arc(side * 7, -46, 5.6, 0, 360, 1.3, color)
            pen.line([(-1.6, -47), (1.6, -47)], 1.3, color)


def _ears(pen: Pen, look: Look) -> None:
    dark = _INK if look.patches else darker(look.fur, 0.12)
    for side in (-1, 1):
        match look.ears:
            case "pointed":
                pen.polygon([(side * 16.5, -46), (side * 14.5, -67), (side * 3, -56)], look.fur)
                pen.polygon([(side * 14.5, -51), (side * 13.4, -62), (side * 6.5, -56)], _ROSE)
            case "round":
                pen.circle(side * 13.5, -55.5, 5.4, dark)
                pen.circle(side * 13.5, -55, 3, mix(dark, _ROSE, 0.0 if look.patches else 0.5))
            case "long":
                pen.ellipse(side * 7, -67, 4.2, 14, look.fur)
                pen.ellipse(side * 7, -66, 2.1, 10.5, _ROSE)
            case "floppy":
                pen.ellipse(side * 16.5, -45, 5, 11.5, darker(look.fur, 0.3))
            case "tufts":
                pen.polygon([(side * 16, -50), (side * 15, -64), (side * 4, -57)], dark)
            case _:
                pen.line([(0, -57), (side * 3, -62)], 1.6, dark)


def _face(pen: Pen, look: Look) -> None:
    if look.stripes:
        for x, top in ((-4.5, -57), (0, -58.5), (4.5, -57)):
            pen.line([(x, top), (x * 0.8, top + 5.5)], 1.4, darker(look.fur, 0.4))
        for side in (-1, 1):
            pen.line([(side * 17, -44), (side * 12.5, -43)], 1.2, darker(look.fur, 0.4))
    _eyes(pen, look)
    for side in (-1, 1):
        pen.circle(side * 12, -39, 2.6, _ROSE, 110)
    if look.beak:
        pen.polygon([(-3.6, -42), (3.6, -42), (0, -36)], (244, 176, 66))
        return
    pen.ellipse(0, -38, 7.5, 5.4, look.belly)
    pen.ellipse(0, -40.5, 2.4, 1.7, look.nose)
    for side in (-1, 1):
        pen.arc(side * 2, -38.2, 2, 10, 170, 0.8, _INK)
        if look.whiskers:
            for lift in (-1.2, 1.2):
                pen.line([(side * 8, -38.5 + lift / 2), (side * 19, -39 + lift * 2)], 0.45, lighter(_INK, 0.25))


def _eyes(pen: Pen, look: Look) -> None:
    if look.patches:
        pen.pair(7, -45.5, 5, 5.6, _INK)
    if look.beak:
        pen.pair(7, -46, 6.4, 6.4, lighter(look.fur, 0.6))
    pen.pair(7, -46, 2.9, 3.5, (255, 255, 255) if look.patches else _INK)
    if look.patches:
        pen.pair(7, -46, 1.8, 2.3, _INK)
    for side in (-1, 1):
        pen.circle(side * 7 + 0.9, -47.4, 1.0, (255, 255, 255))


def _arms(pen: Pen, look: Look, color: Color) -> None:
    if look.hug:
        side = look.hug
        pen.line([(-side * 12, -25), (side * 6, -18), (side * 22, -21)], 6, color)
        pen.line([(side * 13, -25), (side * 25, -17)], 6, color)
        return
    if look.beak:
        pen.pair(15, -18, 4.5, 11, color)
        return
    for side in (-1, 1):
        pen.line([(side * 13, -26), (side * 11, -14)], 6, color)


def _tail(pen: Pen, look: Look) -> None:
    dark = darker(look.fur, 0.15)
    match look.tail:
        case "long":
            pen.line([(12, -5), (22, -6), (26, -14), (23, -23)], 4, dark)
        case "bushy":
            pen.line([(12, -5), (22, -8), (25, -16)], 10, dark)
            pen.circle(25.5, -19, 5, _CREAM)
        case "flat":
            pen.line([(-10, -4), (-22, -3), (-29, -6)], 6.5, dark)
        case _:
            pass
