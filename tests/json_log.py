"""What the service logs, as its collector reads it: lines of JSON."""

import io
import json
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from app.logs import CHATTY, JsonLines
from tests import timeouts

Line = dict[str, Any]


class JsonLog:
    """The lines of this process's loggers, while it is attached."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[Line]:
        return lines_of(self.text)

    def find(self, event: str, **fields: object) -> list[Line]:
        return find(self.lines, event, **fields)

    def wait_for(self, event: str, **fields: object) -> Line:
        """The only such line; it may be written soon after the answer has come."""
        deadline = time.monotonic() + timeouts.PATIENCE
        while not (found := self.find(event, **fields)):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)
        (line,) = found
        return line


def lines_of(text: str) -> list[Line]:
    """As many as `str.splitlines` finds: no value may begin a line of its own."""
    return [json.loads(line) for line in text.splitlines()]


def find(lines: list[Line], event: str, **fields: object) -> list[Line]:
    return [line for line in lines if line["event"] == event and fields.items() <= line.items()]


@contextmanager
def attached(level: int = logging.INFO) -> Generator[JsonLog]:
    log, root = JsonLog(), logging.getLogger()
    handler, before = logging.StreamHandler(log.stream), root.level
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name not in CHATTY)
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield log
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
