"""Edits that anyone can see: the same words change the same image in the same way."""

import random
import re

from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from offline.drawing.scene import COLORS, compose, draw_figures, draw_label, draw_worn, read_figures, worn_alone
from offline.drawing.shapes import STAGE, Color, Pen, lighter, render, seed_of, stretched

_NIGHT: Color = (36, 44, 104)
_FALLBACK_TINTS: tuple[Color, ...] = (
    (255, 170, 90),
    (110, 180, 250),
    (250, 140, 190),
    (120, 210, 150),
    (180, 140, 240),
)


def edit(sources: list[Image.Image], mask: Image.Image | None, prompt: str, pixels: tuple[int, int]) -> Image.Image:
    """Change the first source as the prompt says, set the others into it, and only where the mask is transparent.

    Sources are RGBA; the mask has the first one's size. The result is RGBA of size `pixels`.
    """
    original = sources[0]
    words = tuple(re.findall(r"[a-z]+", prompt.lower()))
    adds = bool(read_figures(words)[0] or worn_alone(words))
    # What is added shows by itself, but a mask may leave no room for it.
    changed = _recolored(original, set(words), seed_of(prompt), tint=mask is not None or not adds)
    _set_in(changed, sources[1:])
    _draw_over(changed, prompt, mask)
    if mask is not None:
        changed = Image.composite(changed, original, _open_to_change(mask))
    return changed if changed.size == pixels else ImageOps.fit(changed, pixels, Image.Resampling.LANCZOS)


def _recolored(image: Image.Image, words: set[str], seed: int, *, tint: bool) -> Image.Image:
    alpha = image.getchannel("A")
    rgb = image.convert("RGB")
    named = [color for name, color in COLORS.items() if name in words]
    if words & {"realistic", "photo", "photorealistic", "dramatic", "cinematic"}:
        rgb = _vignette(ImageEnhance.Contrast(ImageEnhance.Color(rgb).enhance(0.75)).enhance(1.35))
    elif words & {"night", "dark", "darker", "midnight"}:
        rgb = ImageChops.multiply(rgb, Image.new("RGB", rgb.size, lighter(_NIGHT, 0.25)))
    elif words & {"grayscale", "monochrome", "sepia"} or {"black", "white"} <= words:
        rgb = ImageOps.colorize(rgb.convert("L"), (30, 26, 24), (250, 244, 230))
    elif words & {"bright", "brighter", "lighter", "sunny"}:
        rgb = ImageEnhance.Brightness(ImageEnhance.Color(rgb).enhance(1.3)).enhance(1.25)
    elif words & {"blur", "blurry", "dreamy", "soft"}:
        rgb = ImageEnhance.Brightness(rgb.filter(ImageFilter.GaussianBlur(max(rgb.size) / 150))).enhance(1.1)
    elif tint:
        color = named[0] if named else _FALLBACK_TINTS[seed % len(_FALLBACK_TINTS)]
        toned = ImageOps.colorize(rgb.convert("L"), (24, 20, 34), (255, 252, 246), mid=color)
        rgb = Image.blend(rgb, toned, 0.6 if named else 0.3)
    if words & {"mirror", "flip", "flipped", "mirrored"}:
        rgb, alpha = ImageOps.mirror(rgb), ImageOps.mirror(alpha)
    return Image.merge("RGBA", (*rgb.split(), alpha))


def _draw_over(image: Image.Image, prompt: str, mask: Image.Image | None) -> None:
    """What the prompt names to be added, some weather, and the label."""
    scene = compose(prompt, image.size)
    pen = Pen()
    rng = random.Random(scene.seed)  # noqa: S311 - the same edit must give the same image
    snow = {"snow", "snowy", "snowing", "winter", "stars", "starry", "night"} & set(scene.words)
    for _ in range(90 if snow else 14):
        spot = rng.uniform(0, scene.width), rng.uniform(0, scene.height * (1 if snow else 0.5))
        pen.circle(*spot, rng.uniform(0.3, 1.1), (255, 255, 255), 215)
    if scene.figures:
        draw_figures(pen, scene)
    else:
        draw_worn(pen, scene.width, scene.height, worn_alone(scene.words))
    draw_label(pen, scene.width, scene.height, prompt, corner=_masked_corner(mask))
    rgb, drawn = image.convert("RGB"), image.getchannel("A")
    render(rgb, pen.shapes)
    render(drawn, pen.shapes, solid_only=True)
    image.paste(Image.merge("RGBA", (*rgb.split(), drawn)))


def _masked_corner(mask: Image.Image | None) -> tuple[float, float] | None:
    """The lower left corner of what may be changed, in stage units: a label outside it would be cut away."""
    box = _open_to_change(mask).getbbox() if mask else None
    if mask is None or box is None:
        return None
    unit = min(mask.size) / STAGE
    return box[0] / unit + 2, max(box[1] / unit, box[3] / unit - 8)


def _open_to_change(mask: Image.Image) -> Image.Image:
    return Image.eval(mask.getchannel("A"), lambda alpha: 255 if alpha == 0 else 0)


def _set_in(image: Image.Image, others: list[Image.Image]) -> None:
    """Set further images into the lower edge, framed in white: the last one at the right, the others before it."""
    step = min(image.width // max(3, len(others)), image.height // 3)
    side, frame = step * 3 // 4, max(1, step // 32)
    for place, other in enumerate(reversed(others), start=1):
        small = ImageOps.fit(other, (side, side), Image.Resampling.LANCZOS)
        framed = ImageOps.expand(small, border=frame, fill=(255, 255, 255, 255))
        image.alpha_composite(framed, (image.width - place * step, image.height - framed.height - side // 3))


def _vignette(image: Image.Image) -> Image.Image:
    falloff = Image.eval(Image.radial_gradient("L"), lambda value: min(255, 325 - value))
    falloff = stretched(falloff, image.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(image, Image.merge("RGB", (falloff, falloff, falloff)))
