"""Images out of base64: as it arrives, in pieces of a JSON string, or whole.

Decoding each piece at once costs 0.07 ms per MB and holds no base64. Pieces are compared with images that are still
held, so a repeated image costs neither memory nor a second hash.
"""

import io
import json
import os
import re
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pybase64

# Longer images are read to their end and measured, but not held; the provider's largest have 33 MB of pixels.
MAX_IMAGE_BYTES = 64 * 1024**2
MAX_SPILLED_BYTES = 2 * 1024**3

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="  # pragma: allowlist secret
_WHOLE_ESCAPES = re.compile(rb"[^\\]*(?:\\(?:[^u]|u.{4})[^\\]*)*", re.DOTALL)


class SpillFile:
    """One file without a name, for the bytes of images that wait: gone with the process, whatever ends it.

    Written at its end, and emptied once nothing in it is needed; made in `directory` when it is first written. One
    file, as a thousand would take the process's file descriptors.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: io.FileIO | None = None
        self._end = 0
        self._needed = 0
        # Reentrant, because the garbage collector may call `free` at any moment.
        self._lock = threading.RLock()

    def write(self, data: bytes) -> int:
        """The offset at which it lies; raises OSError, also where the file is full."""
        with self._lock:
            if self._end + len(data) > MAX_SPILLED_BYTES:
                raise OSError(f"{self._end} bytes wait already")
            if self._file is None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - see `close`
            offset, descriptor = self._end, self._file.fileno()
            self._end += len(data)
            self._needed += 1
        try:
            view = memoryview(data)
            while view:
                view = view[os.pwrite(descriptor, view, offset + len(data) - len(view)) :]
        except OSError:
            self.free()
            raise
        return offset

    def read(self, offset: int, size: int) -> bytes:
        if self._file is None:
            raise ValueError("Nothing was written.")
        pieces: list[bytes] = []
        while size:
            pieces.append(os.pread(self._file.fileno(), size, offset))
            offset, size = offset + len(pieces[-1]), size - len(pieces[-1])
            if not pieces[-1]:
                raise OSError("the file is shorter than what was written")
        return b"".join(pieces)

    def free(self) -> None:
        """What was written once is not needed any more."""
        with self._lock:
            self._needed -= 1
            if not self._needed and self._file is not None:
                os.ftruncate(self._file.fileno(), 0)
                self._end = 0

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


@dataclass(eq=False, slots=True, weakref_slot=True)
class ImageBytes:
    """`data` is None where the bytes wait in a file, where the base64 is invalid (`size` is 0), or has too many bytes.

    `repeated`: dropped, as these bytes came before in the same stream.
    """

    data: bytes | None = field(repr=False)
    size: int
    repeated: bool = False
    _spilled: tuple[SpillFile, int] | None = field(default=None, repr=False)

    @property
    def is_spilled(self) -> bool:
        return self._spilled is not None

    def checksum(self) -> int:
        """CRC-32, 1 ms per MB; only while the bytes are held."""
        return zlib.crc32(self.data or b"")

    def equals(self, other: "ImageBytes") -> bool:
        return self.size == other.size and self.read() == other.read()

    def spill(self, file: SpillFile) -> None:
        """Move the bytes into the file, until this object is freed; raises OSError."""
        data = self.data
        if data is None or self.is_spilled:
            return
        offset = file.write(data)
        weakref.finalize(self, file.free).atexit = False
        self._spilled, self.data = (file, offset), None

    def read(self) -> bytes | None:
        """The bytes, wherever they are; None where there are none."""
        return self._spilled[0].read(self._spilled[1], self.size) if self._spilled else self.data


def decode(base64: str) -> ImageBytes:
    """White space is skipped, as in a stream."""
    try:
        data = pybase64.b64decode("".join(base64.split()), validate=True)
    except ValueError:
        return ImageBytes(None, 0)
    return ImageBytes(data, len(data))


class Base64Reader:
    """Decodes one JSON string, fed without its quotes; `known` are images that it may repeat."""

    def __init__(self, known: Iterable[ImageBytes]) -> None:
        # False once the text cannot stand in a JSON string at all.
        self.is_json = True
        self._candidates = [(image, image.data) for image in known if image.data]
        self._held = io.BytesIO()  # a list of pieces would be joined, and then be twice in memory
        self._size = 0
        # What is not decoded yet: less than four letters, or an incomplete escape.
        self._rest = b""
        self._valid = True
        self._padded = False

    def feed(self, text: bytes) -> None:
        if self._valid and not self.feed_plain(text):
            self._feed_escaped(self._rest + text)

    def feed_plain(self, text: bytes) -> bool:
        """False, and nothing is read, where there is anything but letters of base64."""
        begin = -len(self._rest) % 4
        end = len(text) - (len(text) - begin) % 4
        if not self._valid or begin > end or text[end:].translate(None, _LETTERS):
            return False
        try:
            first = pybase64.b64decode(self._rest + text[:begin], validate=True)
            # A view, as a copy of each chunk costs as much as decoding it.
            second = pybase64.b64decode(memoryview(text)[begin:end], validate=True)
        except ValueError:
            return False
        self._add(first, len(self._rest) + begin)
        self._add(second, end - begin)
        self._rest = text[end:]
        return True

    def finish(self) -> ImageBytes:
        if not self._valid:
            return ImageBytes(None, 0)
        if self._rest:
            self.is_json = b"\\" not in self._rest
            return ImageBytes(None, 0)
        for image, data in self._candidates:
            if len(data) == self._size:
                return image
        self._diverge()
        return ImageBytes(self._held.getvalue() if self._size <= MAX_IMAGE_BYTES else None, self._size)

    def _feed_escaped(self, text: bytes) -> None:
        """Base64 with JSON escapes and white space: rare, so it may cost more."""
        complete = _WHOLE_ESCAPES.match(text)
        end = complete.end() if complete else 0
        try:
            letters = "".join(json.loads(b'"' + text[:end] + b'"').split()).encode("ascii")
            whole = len(letters) & ~3
            self._add(pybase64.b64decode(letters[:whole], validate=True), whole)
            self._valid = self._valid and not letters[whole:].translate(None, _LETTERS)
        except json.JSONDecodeError:
            self._valid = self.is_json = False
        except ValueError:
            self._valid = False
        else:
            self._rest = letters[whole:] + text[end:]

    def _add(self, piece: bytes, letters: int) -> None:
        if not piece:
            return
        # Nothing may follow the padding.
        self._valid = self._valid and not self._padded
        self._padded = len(piece) * 4 != letters * 3
        if self._candidates:
            equal = [known for known in self._candidates if known[1].startswith(piece, self._size)]
            if not equal:
                self._diverge()
            self._candidates = equal
        if not self._candidates and self._size <= MAX_IMAGE_BYTES:
            self._held.write(piece)
        self._size += len(piece)
        if self._size > MAX_IMAGE_BYTES or not self._valid:
            self._held = io.BytesIO()

    def _diverge(self) -> None:
        """So far this was the beginning of a known image: take that part from there."""
        if self._candidates:
            self._held.write(memoryview(self._candidates[0][1])[: self._size])
            self._candidates = []
