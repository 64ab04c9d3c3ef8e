"""From a prompt to a scene: which figures it names, in which colours, on which backdrop, and where they stand.

The same prompt always gives the same scene.
"""

import random
import re
from dataclasses import dataclass, replace

from offline.drawing.creatures import CREATURES, WORN, creature, draw_creature, draw_robot, wear
from offline.drawing.shapes import STAGE, Color, Pen, darker, lighter, mix, seed_of, text_width
from offline.drawing.things import OBJECTS, SCENERY, SKY

COLORS: dict[str, Color] = {
    "red": (214, 66, 66),
    "orange": (240, 138, 48),
    "yellow": (248, 206, 78),
    "gold": (226, 178, 66),
    "golden": (226, 178, 66),
    "green": (96, 168, 92),
    "teal": (52, 154, 152),
    "turquoise": (64, 190, 186),
    "blue": (74, 130, 206),
    "navy": (44, 62, 110),
    "purple": (140, 96, 190),
    "violet": (150, 104, 204),
    "pink": (240, 148, 176),
    "brown": (134, 92, 62),
    "beige": (226, 206, 176),
    "black": (52, 50, 60),
    "white": (248, 246, 244),
    "gray": (152, 154, 164),
    "grey": (152, 154, 164),
    "silver": (196, 200, 208),
}
_ALIASES = {
    "sailboat": "boat", "ship": "boat", "coffee": "cup", "tea": "cup", "mug": "cup", "teapot": "cup", "rose": "flower",
    "tulip": "flower", "sunflower": "flower", "cottage": "house", "home": "house", "cabin": "house", "pine": "tree",
    "oak": "tree", "forest": "tree", "sunglasses": "glasses", "spectacles": "glasses", "tie": "bow", "cap": "hat",
    "mountains": "mountain", "hill": "mountain", "volcano": "mountain", "bears": "bear", "love": "heart",
    "android": "robot", "truck": "car", "planet": "moon", "axolotl": "frog", "wolf": "dog", "hamster": "mouse",
    "parrot": "bird", "rainforest": "tree", "sunrise": "sun", "sunny": "sun", "spaceship": "rocket",
}  # fmt: skip
_COUNTS = {"two": 2, "2": 2, "couple": 2, "pair": 2, "three": 3, "3": 3, "four": 4, "4": 4, "many": 4, "some": 3}
# words -> top of the sky, bottom of the sky, ground
_BACKDROPS: tuple[tuple[str, Color, Color, Color], ...] = (
    ("night space moon star galaxy midnight dark", (26, 30, 66), (92, 84, 142), (54, 66, 92)),
    ("sunset sunrise dusk dawn evening warm", (250, 158, 112), (255, 222, 170), (176, 122, 104)),
    ("snow winter snowy ice frozen arctic", (176, 204, 230), (238, 244, 250), (246, 249, 253)),
    ("sea ocean water lake river boat ship underwater fish", (156, 208, 236), (222, 242, 246), (88, 162, 196)),
    ("desert sand beach dune", (160, 212, 236), (252, 238, 208), (232, 202, 150)),
    ("forest jungle garden meadow grass tree", (190, 226, 224), (244, 246, 218), (140, 186, 116)),
)
_PASTELS: tuple[tuple[Color, Color, Color], ...] = (
    ((250, 218, 206), (255, 244, 230), (226, 190, 158)),
    ((198, 222, 244), (240, 247, 252), (156, 192, 150)),
    ((224, 210, 242), (250, 240, 248), (178, 164, 206)),
    ((204, 234, 218), (246, 250, 236), (148, 190, 156)),
    ((254, 228, 176), (255, 248, 226), (222, 180, 126)),
)


@dataclass(frozen=True)
class Figure:
    name: str
    color: Color | None = None
    count: int = 1
    stripes: bool = False
    worn: tuple[tuple[str, Color], ...] = ()


@dataclass(frozen=True)
class Scene:
    seed: int
    width: float  # of the stage: its shorter side is 100
    height: float
    sky: tuple[Color, Color]
    ground: Color
    figures: tuple[Figure, ...]
    hugging: bool
    tints: tuple[Color, ...]  # colours that belong to no figure
    words: tuple[str, ...]
    caption: str


def compose(prompt: str, pixels: tuple[int, int]) -> Scene:
    words = tuple(re.findall(r"[a-z]+|\d+", prompt.lower()))
    seed = seed_of(" ".join(words) or prompt)
    rng = random.Random(seed)  # noqa: S311 - the same prompt must give the same image
    sky_top, sky_bottom, ground = rng.choice(_PASTELS)
    for names, *colors in _BACKDROPS:
        if set(names.split()) & set(words):
            sky_top, sky_bottom, ground = colors
            break
    figures, tints = read_figures(words)
    if tints:
        sky_top, sky_bottom = mix(sky_top, tints[0], 0.35), mix(sky_bottom, lighter(tints[0], 0.5), 0.5)
    unit = min(pixels) / STAGE
    return Scene(
        seed=seed,
        width=pixels[0] / unit,
        height=pixels[1] / unit,
        sky=(sky_top, sky_bottom),
        ground=ground,
        figures=figures,
        hugging=any(word.startswith(("hug", "cuddl", "embrac", "hold")) for word in words),
        tints=tints,
        words=words,
        caption=prompt,
    )


def read_figures(words: tuple[str, ...]) -> tuple[tuple[Figure, ...], tuple[Color, ...]]:
    """The figures the words name, and the colours that stand before none of them."""
    figures: list[Figure] = []
    color: Color | None = None
    free: list[Color] = []
    count, stripes, since = 1, False, 0
    for word in words:
        name = _known(word)
        since += 1
        if word in COLORS:
            free += [color] if color else []
            color, since = COLORS[word], 0
        elif word in _COUNTS:
            count = _COUNTS[word]
        elif word in ("tabby", "striped", "stripes", "stripy"):
            stripes = True
        elif name in WORN:
            _put_on(figures, name, color or COLORS["red"])
            color = None
        elif name:
            near = color if since <= 3 else None
            free += [color] if color and not near else []
            known = next((i for i, figure in enumerate(figures) if figure.name == name), None)
            if known is None:
                figures.append(Figure(name, near, count, stripes))
            color, count, stripes = None, 1, False
    return tuple(figures[:6]), tuple(free + ([color] if color else []))


def worn_alone(words: tuple[str, ...]) -> tuple[tuple[str, Color], ...]:
    """Hats, scarves and so on that are named without anyone to wear them, as in "make the scarf blue"."""
    found: list[tuple[str, Color]] = []
    for index, word in enumerate(words):
        if (thing := _known(word)) in WORN:
            near = [*reversed(words[max(0, index - 2) : index]), *words[index + 1 : index + 2]]
            found.append((thing, next((COLORS[color] for color in near if color in COLORS), COLORS["red"])))
    return tuple(found)


def draw_scene(scene: Scene, detail: int) -> Pen:
    """Everything but the sky itself, back to front; `detail` is 0 (plain) to 4."""
    pen = Pen()
    _draw_sky(pen, scene, detail)
    _draw_ground(pen, scene, detail)
    draw_figures(pen, scene)
    draw_label(pen, scene.width, scene.height, scene.caption)
    return pen


def draw_figures(pen: Pen, scene: Scene) -> None:
    """The figures of a scene without sky and ground, as a transparent image or an edit shows them."""
    rng = random.Random(scene.seed + 4)  # noqa: S311 - as above
    crowd = [figure for figure in scene.figures for _ in range(figure.count)]
    for index, figure in enumerate(high := [figure for figure in crowd if figure.name in SKY]):
        draw, color = SKY[figure.name]
        spot = scene.width * (index + 0.5) / len(high) * 0.8 + scene.width * rng.uniform(0.02, 0.16)
        draw(pen.at(spot, scene.height * rng.uniform(0.14, 0.24), scene.height / 100), figure.color or color)
    for index, figure in enumerate(far := [figure for figure in crowd if figure.name in SCENERY]):
        draw, color = SCENERY[figure.name]
        spot = scene.width * (index + 0.5) / len(far)
        draw(pen.at(spot, scene.height * 0.76, scene.height / 105), figure.color or color)
    _draw_crowd(pen, scene, [figure for figure in crowd if figure.name not in SKY and figure.name not in SCENERY])
    if not crowd:
        _draw_abstract(pen, scene)


def draw_label(
    pen: Pen, width: float, height: float, caption: str, *, corner: tuple[float, float] | None = None
) -> None:
    """The plain word OFFLINE in a corner, with the prompt behind it where a font has all of its characters.

    Always as wide and never see-through, so that an edit's label covers the one before it.
    """
    readable = caption if text_width(caption, 1) else ""
    tall, end = 3.1, min(width - 10, 76)
    first = text_width("OFFLINE", tall)
    while readable and first + text_width(readable, tall) > end - 5:
        readable = readable.removesuffix("…")[:-1].rstrip() + "…" if len(readable) > 2 else ""
    here = pen.at(*(corner or (3.0, height - 8.0)))
    here.line([(2.6, 2.5), (end, 2.5)], 5, (44, 38, 56))
    here.text(3, 0.9, tall, "OFFLINE", (255, 210, 120))
    here.text(3 + first + 2.4, 0.9, tall, readable, (255, 255, 255))


def draw_worn(pen: Pen, width: float, height: float, worn: tuple[tuple[str, Color], ...]) -> None:
    """Put things on whoever sits alone in the middle of a scene of this size."""
    for thing, color in worn:
        wear(pen.at(width / 2, height * 0.89, _crowd_scale(width, height, 1)), thing, color)


def _draw_crowd(pen: Pen, scene: Scene, crowd: list[Figure]) -> None:
    if not crowd:
        return
    scale = _crowd_scale(scene.width, scene.height, len(crowd))
    hug = scene.hugging and len(crowd) > 1
    step = (34 if hug else 44) * scale
    for index, figure in enumerate(crowd):
        middle = scene.width / 2 + (index - (len(crowd) - 1) / 2) * step
        here = pen.at(middle, scene.height * (0.89 if index % 2 == 0 or hug else 0.865), scale)
        if figure.name in CREATURES:
            reach = (1 if index == 0 else -1 if index == 1 else 0) if hug else 0
            look = creature(figure.name, figure.color, stripes=figure.stripes)
            draw_creature(here, replace(look, worn=figure.worn, hug=reach))
        elif figure.name == "robot":
            draw_robot(here, figure.color)
        else:
            draw, color = OBJECTS[figure.name]
            draw(here.at(0, 0, 1.0 if figure.name == "boat" else 1.25), figure.color or color)


def _crowd_scale(width: float, height: float, number: int) -> float:
    return min(height * 0.66 / 66, width * 0.94 / (number * 46))


def _draw_sky(pen: Pen, scene: Scene, detail: int) -> None:
    rng = random.Random(scene.seed + 1)  # noqa: S311 - as above
    dark = sum(scene.sky[0]) < 330
    for _ in range((14 if dark else 4) + 6 * detail):
        x, y = rng.uniform(0, scene.width), rng.uniform(0, scene.height * 0.62)
        pen.circle(x, y, rng.uniform(0.2, 0.6 if dark else 1.4), (255, 255, 255), 210 if dark else 90)
    for _ in range(0 if dark else 3):
        x, y = rng.uniform(0, scene.width), rng.uniform(8, scene.height * 0.3)
        for shift in (-5, 0, 6):
            pen.ellipse(x + shift, y - 1.5 * (shift == 0), 8, 3.4, (255, 255, 255), 110)


def _draw_ground(pen: Pen, scene: Scene, detail: int) -> None:
    rng = random.Random(scene.seed + 2)  # noqa: S311 - as above
    far = mix(scene.ground, scene.sky[1], 0.45)
    pen.ellipse(scene.width * rng.uniform(0.1, 0.35), scene.height, scene.width * 0.75, scene.height * 0.34, far)
    pen.ellipse(
        scene.width * rng.uniform(0.65, 0.95), scene.height, scene.width * 0.7, scene.height * 0.3, lighter(far, 0.12)
    )
    pen.ellipse(scene.width * 0.5, scene.height * 1.12, scene.width * 0.95, scene.height * 0.38, scene.ground)
    for _ in range(10 + 14 * detail):
        x, y = rng.uniform(0, scene.width), rng.uniform(scene.height * 0.8, scene.height)
        blade = rng.choice((darker(scene.ground, 0.14), lighter(scene.ground, 0.25)))
        pen.line([(x, y), (x + rng.uniform(-0.8, 0.8), y - rng.uniform(1, 2.4))], 0.4, blade)


def _draw_abstract(pen: Pen, scene: Scene) -> None:
    """Nothing we can draw was named: soft discs in the prompt's own colours, and for a logo its initial."""
    rng = random.Random(scene.seed + 3)  # noqa: S311 - as above
    base = scene.tints or tuple(rng.sample(list(COLORS.values()), 3))
    middle, size = (scene.width / 2, scene.height * 0.47), min(scene.width, scene.height)
    for index in range(7):
        x, y = middle[0] + rng.uniform(-0.28, 0.28) * size, middle[1] + rng.uniform(-0.24, 0.24) * size
        pen.circle(x, y, rng.uniform(0.06, 0.2) * size, mix(base[index % len(base)], (255, 255, 255), 0.15), 190)
    if "logo" in scene.words:
        pen.circle(*middle, 0.27 * size, lighter(base[0], 0.85))
        pen.circle(*middle, 0.24 * size, base[0])
        named = [word for word in scene.words if word not in COLORS and len(word) > 3 and word != "logo"]
        letter = (named or ["easel"])[-1][0].upper()
        height = 0.3 * size
        pen.text(middle[0] - text_width(letter, height) / 2, middle[1] - height * 0.62, height, letter, (255, 255, 255))


def _put_on(figures: list[Figure], thing: str, color: Color) -> None:
    for index in range(len(figures) - 1, -1, -1):
        if figures[index].name in CREATURES:
            figures[index] = replace(figures[index], worn=(*figures[index].worn, (thing, color)))
            return


def _known(word: str) -> str:
    """The figure or garment a word means, in the singular; empty for any other word."""
    for form in (
        word,
        word.removesuffix("s"),
        word.removesuffix("es"),
        word.replace("ies", "y"),
        word.replace("ves", "f"),
    ):
        name = _ALIASES.get(form, form)
        if name in CREATURES or name in SKY or name in SCENERY or name in OBJECTS or name in WORN or name == "robot":
            return name
    return ""
