"""One file without a name, for the bytes of images that wait: gone with the process, whatever ends it."""

import os
import tempfile
import threading
from pathlib import Path
from typing import IO

MAX_BYTES = 2 * 1024**3


class SpillFile:
    """Written at its end, and emptied once nothing in it is needed; made in `directory` when it is first written.

    One file, as a thousand would take the process's file descriptors.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._end = 0
        self._needed = 0
        # Reentrant, because the garbage collector may call `free` at any moment.
        self._lock = threading.RLock()

    def write(self, data: bytes) -> int:
        """The place where it lies; raises OSError, also where the file is full."""
        with self._lock:
            if self._end + len(data) > MAX_BYTES:
                raise OSError(f"{self._end} bytes wait already")
            if self._file is None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - see `close`
            place, descriptor = self._end, self._file.fileno()
            self._end += len(data)
            self._needed += 1
        try:
            view = memoryview(data)
            while view:
                view = view[os.pwrite(descriptor, view, place + len(data) - len(view)) :]
        except OSError:
            self.free()
            raise
        return place

    def read(self, place: int, size: int) -> bytes:
        if self._file is None:
            raise ValueError("Nothing was written.")
        pieces: list[bytes] = []
        while size:
            pieces.append(os.pread(self._file.fileno(), size, place))
            place, size = place + len(pieces[-1]), size - len(pieces[-1])
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
