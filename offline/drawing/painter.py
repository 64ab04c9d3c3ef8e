"""Makes images with Pillow, from a prompt alone or by changing given ones; each takes well under a second."""

import base64
import io
import random
import struct
import zlib
from dataclasses import dataclass
from math import cos, pi, sin

from PIL import Image, ImageChops, ImageFilter, ImageOps

from offline.drawing.edits import edit
from offline.drawing.scene import Scene, compose, draw_figures, draw_label, draw_scene
from offline.drawing.shapes import Pen, render, stretched, to_svg

_DETAIL = {"low": 0, "medium": 1, "high": 2, "xhigh": 3, "max": 4}
_MAX_CANVAS = 2048  # drawn no larger than this, then enlarged
_GRAIN_PIXELS = 2_500_000  # beyond this size paper grain would make files of tens of megabytes
_PNG_END = b"IEND"


@dataclass(frozen=True)
class ImageSpec:
    """One image to make; every option is decided (no `auto`)."""

    prompt: str
    pixels: tuple[int, int]
    quality: str
    background: str  # opaque | transparent
    output_format: str
    compression: int
    partials: int
    frame_count: int
    frame_duration_ms: int
    sources: tuple[bytes, ...] = ()  # non-empty makes it an edit
    mask: bytes | None = None


@dataclass(frozen=True)
class Artwork:
    final: bytes
    partials: tuple[bytes, ...]  # sharper and sharper; the last one is `final`
    editable: bytes | None  # a PNG of the same image, where the final itself has no pixels


def paint(spec: ImageSpec) -> Artwork:
    if spec.sources:
        sources = [open_image(data) for data in spec.sources]
        image = edit(sources, open_image(spec.mask) if spec.mask else None, spec.prompt, spec.pixels)
    else:
        image = _from_prompt(spec)
    if spec.background == "opaque" and image.mode == "RGBA":
        image = _on_white(image)
    final = _encode(image, spec)
    blurred = [_encode(_unfinished(image, index), spec) for index in range(spec.partials - 1)]
    partials = (*blurred, final) if spec.partials else ()
    return Artwork(final, partials, _png(image, 1) if spec.output_format == "svg" else None)


def open_image(data: bytes) -> Image.Image:
    """RGBA pixels of any image Pillow can read (the first frame); raises OSError or ValueError for others."""
    with Image.open(io.BytesIO(data)) as image:
        return (ImageOps.exif_transpose(image) or image).convert("RGBA")


def enlarge_png(png: bytes, size: int) -> bytes:
    """The same image, padded with noise in a private chunk until the file weighs `size` bytes."""
    noise = random.Random(0).randbytes(max(0, size - len(png) - 12))  # noqa: S311 - weight, not secrecy
    body = b"ofFl" + noise
    end = png.rindex(_PNG_END) - 4
    return png[:end] + struct.pack(">I", len(noise)) + body + struct.pack(">I", zlib.crc32(body)) + png[end:]


def other_type(spec: ImageSpec, data: bytes) -> bytes:
    """The same image as JPEG, or as PNG where it is one already."""
    image = open_image(data).convert("RGB")
    return _png(image, 1) if spec.output_format == "jpeg" else _jpeg(image, 85)


def _from_prompt(spec: ImageSpec) -> Image.Image:
    scene = compose(spec.prompt, spec.pixels)
    detail = _DETAIL[spec.quality]
    enlarge = min(2 if detail else 1, _MAX_CANVAS / max(spec.pixels))
    canvas = round(spec.pixels[0] * enlarge), round(spec.pixels[1] * enlarge)
    image = (
        _draw_transparent(scene, canvas) if spec.background == "transparent" else _draw_opaque(scene, canvas, detail)
    )
    image = stretched(image, spec.pixels, Image.Resampling.BOX if enlarge == 2 else Image.Resampling.LANCZOS)
    if detail >= 2 and image.mode == "RGB" and spec.pixels[0] * spec.pixels[1] <= _GRAIN_PIXELS:
        image = _with_grain(image, scene.seed)
    return image


def _draw_opaque(scene: Scene, canvas: tuple[int, int], detail: int) -> Image.Image:
    image = ImageOps.colorize(stretched(Image.linear_gradient("L"), canvas, Image.Resampling.BICUBIC), *scene.sky)
    render(image, draw_scene(scene, detail).shapes)
    return image


def _draw_transparent(scene: Scene, canvas: tuple[int, int]) -> Image.Image:
    pen = Pen()
    draw_figures(pen, scene)
    draw_label(pen, scene.width, scene.height, scene.caption)
    image, solid = Image.new("RGB", canvas, (255, 255, 255)), Image.new("L", canvas, 0)
    render(image, pen.shapes)
    render(solid, pen.shapes, solid_only=True)
    image.putalpha(solid)
    return image


def _with_grain(image: Image.Image, seed: int) -> Image.Image:
    """A little paper grain: it looks drawn, and the file weighs what a real image weighs."""
    tile = Image.frombytes("L", (256, 256), random.Random(seed).randbytes(65_536))  # noqa: S311 - the same each time
    grain = Image.new("L", image.size)
    for x in range(0, image.width, 256):
        for y in range(0, image.height, 256):
            grain.paste(tile, (x, y))
    soft = Image.eval(grain, lambda value: 124 + value // 32)
    return ImageChops.add(image, Image.merge("RGB", (soft, soft, soft)), offset=-127)


def _unfinished(image: Image.Image, index: int) -> Image.Image:
    """How the image looked before it was done: coarse at first, then sharper."""
    coarse = 24 // 3**index or 2
    small = ImageOps.scale(image, 1 / coarse, Image.Resampling.BOX)
    return stretched(small.filter(ImageFilter.GaussianBlur(1)), image.size, Image.Resampling.BICUBIC)


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _encode(image: Image.Image, spec: ImageSpec) -> bytes:
    match spec.output_format:
        case "jpeg":
            return _jpeg(image.convert("RGB"), min(95, max(5, spec.compression)))
        case "webp":
            return _saved(image, "WEBP", quality=min(95, max(1, spec.compression)), method=1)
        case "gif":
            return _gif(image.convert("RGB"), spec)
        case "svg":
            return _svg(image, spec)
        case _:
            return _png(image, 1)


def _png(image: Image.Image, effort: int) -> bytes:
    return _saved(image, "PNG", compress_level=effort)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    return _saved(image, "JPEG", quality=quality)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _gif(image: Image.Image, spec: ImageSpec) -> bytes:
    """The image with sparkles that circle around its middle, one step a frame."""
    base = image.quantize(200, dither=Image.Dither.NONE)
    palette = base.getpalette() or []
    frames: list[Image.Image] = []
    for index in range(spec.frame_count):
        pen = Pen()
        width, height = (100 * side / min(image.size) for side in image.size)
        for sparkle in range(6):
            turn = 2 * pi * (index / spec.frame_count / 6 + sparkle / 6)
            spot = width * (0.5 + 0.36 * cos(turn)), height * (0.42 + 0.3 * sin(turn))
            pen.circle(*spot, 1.2 + 0.5 * (sparkle % 3), (255, 246, 200))
        frame = base.convert("RGB")
        render(frame, pen.shapes)
        frames.append(frame.quantize(palette=base) if palette else frame)
    duration = round(spec.frame_duration_ms, -1)
    return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0, disposal=1)


def _svg(image: Image.Image, spec: ImageSpec) -> bytes:
    """Real shapes for a new image; an edited one is embedded as the pixels it is made of."""
    width, height = spec.pixels
    scene = compose(spec.prompt, spec.pixels)
    if spec.sources:
        kind, data = ("png", _png(image, 3)) if image.mode == "RGBA" else ("jpeg", _jpeg(image, 85))
        link = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        body = f'<image width="{scene.width:.2f}" height="{scene.height:.2f}" href="{link}"/>'
    elif spec.background == "transparent":
        pen = Pen()
        draw_figures(pen, scene)
        draw_label(pen, scene.width, scene.height, scene.caption)
        body = to_svg(pen.shapes)
    else:
        top, bottom = (f"#{bytes(color).hex()}" for color in scene.sky)
        stops = f'<stop stop-color="{top}"/><stop offset="1" stop-color="{bottom}"/>'
        sky = f'<linearGradient id="sky" x2="0" y2="1">{stops}</linearGradient>'
        rect = '<rect width="100%" height="100%" fill="url(#sky)"/>'
        body = f"<defs>{sky}</defs>\n{rect}\n{to_svg(draw_scene(scene, _DETAIL[spec.quality]).shapes)}"
    box = f'width="{width}" height="{height}" viewBox="0 0 {scene.width:.3f} {scene.height:.3f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n{body}\n</svg>\n'.encode()
