"""Images of the bench, the same ones each time: noise, and one like those that the provider draws."""

# Pillow's types mention numpy, which is not here.
# pyright: reportUnknownMemberType=false

import io
import random
from statistics import NormalDist

from PIL import Image, ImageChops, ImageDraw, ImageFilter

_HIGH_BITS = bytes(value & 0xF0 for value in range(256))
# From evenly spread bytes to a bell curve around 128.
_GRAIN = bytes(round(NormalDist(128, 2).inv_cdf((value + 0.5) / 256)) for value in range(256))
_SHAPES = 400


def noise(width: int, seed: int, *, all_bits: bool = True) -> bytes:
    """Square, nothing in it can be predicted: the dearest image for every encoder."""
    pixels = random.Random(seed).randbytes(width * width * 3)
    return _png(_rgb(width, pixels if all_bits else pixels.translate(_HIGH_BITS)), level=1)


def drawing(width: int, seed: int) -> bytes:
    """Square: soft shapes on gradients under a little grain.

    1024 pixels wide, its PNG has 1.56 MB, and its PNG and WebP cost as much to decode and to encode as those of the
    images of gpt-image models (1.3 to 1.6 MB): docs/decisions/0021-thumbnails.md.
    """
    numbers = random.Random(seed)
    gradient = Image.linear_gradient("L").resize((width, width))
    image = Image.merge("RGB", [gradient.rotate(90 * turns) for turns in range(3)])
    pen = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        center = (numbers.randrange(width), numbers.randrange(width))
        pen.circle(center, numbers.randrange(width // 128, width // 8), fill=tuple(numbers.randbytes(3)))
    grain = _rgb(width, numbers.randbytes(width * width * 3).translate(_GRAIN))
    return _png(ImageChops.add(image.filter(ImageFilter.GaussianBlur(1)), grain, offset=-128), level=6)


def _rgb(width: int, pixels: bytes) -> Image.Image:
    return Image.frombytes("RGB", (width, width), pixels)


def _png(image: Image.Image, *, level: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "png", compress_level=level)
    return out.getvalue()
