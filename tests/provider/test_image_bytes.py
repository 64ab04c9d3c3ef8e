"""What an image takes in memory while its base64 arrives."""

import base64
import random
import tracemalloc

from app.provider.image_bytes import Base64Reader, ImageBytes

DATA = random.Random(3).randbytes(3_000_000)
TEXT = base64.b64encode(DATA)
CHUNK = 64 * 1024


def test_an_image_is_never_twice_in_memory() -> None:
    chunks = [TEXT[at : at + CHUNK] for at in range(0, len(TEXT), CHUNK)]
    tracemalloc.start()
    try:
        image = _read(chunks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.data == DATA
    assert peak < 1.3 * len(DATA)


def test_an_image_that_begins_like_a_known_one_is_whole() -> None:
    known = ImageBytes(DATA, len(DATA))
    other = DATA[:1_000_000] + DATA[:1_000_000]
    text = base64.b64encode(other)
    assert _read([text[:400_000], text[400_000:]], known).data == other
    assert _read([base64.b64encode(DATA[:999_999])], known).data == DATA[:999_999]


def _read(chunks: list[bytes], *known: ImageBytes) -> ImageBytes:
    reader = Base64Reader(known)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()
