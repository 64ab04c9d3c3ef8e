"""Markdown links whose targets lead nowhere for a user: `sandbox:` and `attachment:` name files of the model's own."""

import re
from typing import NamedTuple

SCHEMES = ("sandbox:", "attachment:")
# No link is waited for with a longer label, or one with a blank line; a longer target is cut off.
MAX_LABEL = 500
MAX_TARGET = 2_000

_SIGN = re.compile(r"!?\[|<|!$")
_BEFORE_TARGET = re.compile(r"\s*<?\s*")
# As far as it goes: with one level of parentheses in it, or without white space.
_IN_PARENTHESES = re.compile(r"(?:[^()\n]|\([^()\n]*(?:\)|\Z))*")
_UNBROKEN = re.compile(r"[^\s<>]*")


class _Link(NamedTuple):
    """What a sign begins: a link that is left out up to `end`, or what may become one (`is_open`)."""

    label: str
    end: int
    is_open: bool = False


class LinkFilter:
    """Takes a text in pieces and returns it without such targets: the label stays, an image's as well.

    A piece is held back from a bracket on, until it is known whether such a link begins there.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        if not self._held and not any(sign in piece for sign in "[<!"):
            return piece
        text, self._held = _without_links(self._held + piece, is_end=False)
        return text

    def finish(self) -> str:
        """The rest, at the end of the text."""
        text, self._held = _without_links(self._held, is_end=True)
        return text


def _without_links(text: str, *, is_end: bool) -> tuple[str, str]:
    """The text as far as it is decided, and what is to be held back."""
    done: list[str] = []
    at = 0
    while sign := _SIGN.search(text, at):
        done.append(text[at : sign.start()])
        link = _link_at(text, sign.start())
        if link is not None and link.is_open and not is_end:
            return "".join(done), text[sign.start() :]
        if link is None or not link.end:
            done.append(sign[0])
            at = sign.end()
            continue
        done.append(_without_links(link.label, is_end=True)[0])
        at = link.end
    return "".join(done) + text[at:], ""


def _link_at(text: str, begin: int) -> _Link | None:
    """None where no such link begins; an open one has an `end` if its target is one that is left out."""
    if text[begin] == "<":
        return _to_target("", text, begin + 1, _UNBROKEN, ">")
    start = begin + (text[begin] == "!")
    if start == len(text):
        return _Link("", 0, is_open=True)
    close = _closing_bracket(text, start)
    if close < 0:
        waits = len(text) - start <= MAX_LABEL and "\n\n" not in text[start:]
        return _Link("", 0, is_open=True) if waits else None
    label, sign = text[start + 1 : close], text[close + 1 : close + 2]
    if not sign:
        return _Link("", 0, is_open=True)
    target = _BEFORE_TARGET.match(text, close + 2)
    if sign not in "(:" or target is None:
        return None
    shape, closing = (_IN_PARENTHESES, ")") if sign == "(" else (_UNBROKEN, "")
    return _to_target(label, text, target.end(), shape, closing)


def _to_target(label: str, text: str, start: int, shape: re.Pattern[str], closing: str) -> _Link | None:
    # A backslash before the colon is Markdown's way to write a colon.
    head = text[start : start + 12].lower().replace("\\", "")
    if not head.startswith(SCHEMES):
        may_come = start + 12 > len(text) and any(scheme.startswith(head) for scheme in SCHEMES)
        return _Link("", 0, is_open=True) if may_come else None
    match = shape.match(text, start)
    end = match.end() if match else start
    if end == len(text):
        return _Link(label, end, is_open=end - start <= MAX_TARGET)
    return _Link(label, end + (closing != "" and text[end] == closing))


def _closing_bracket(text: str, start: int) -> int:
    """Of the bracket there; -1 where it is not closed yet."""
    depth = at = 0
    for at in range(start, min(len(text), start + MAX_LABEL + 2)):
        if at > start and text[at - 1] == "\\":
            continue
        depth += (text[at] == "[") - (text[at] == "]")
        if not depth:
            return at
    return -1
