"""The text of a run's message, piece by piece as readers get it, and whole as its row keeps it, with its images."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from app.attachments.models import Attachment
from app.conversations.models import ImagePlaces
from app.conversations.parts import BREAK
from app.runs.events import MAX_DELTA_CHARACTERS
from app.worker.link_filter import LinkFilter


def cut(text: str) -> list[str]:
    """In pieces that each fit into an event."""
    if 0 < len(text) <= MAX_DELTA_CHARACTERS:
        return [text]
    return [text[at : at + MAX_DELTA_CHARACTERS] for at in range(0, len(text), MAX_DELTA_CHARACTERS)]


class MessageText:
    """A blank line stands between the texts of different items of the answer."""

    def __init__(self) -> None:
        # The text by item of the response; that of earlier responses first.
        self._parts: dict[str, list[str]] = {}
        self._item_id = ""
        self._links = LinkFilter()
        self._places: list[tuple[int, str]] = []

    def __str__(self) -> str:
        return BREAK.join(text for part in self._parts.values() if (text := "".join(part)))

    def restore(self, delta: str) -> None:
        """What an earlier attempt emitted."""
        self._parts.setdefault("", []).append(delta)

    def place_image(self, tool_call_id: str) -> None:
        """The images of this call come after what was emitted so far."""
        self._places.append((len(str(self)), tool_call_id))

    def image_places(self, rows: Sequence[Attachment]) -> ImagePlaces:
        """Where the message's images come; two may be of one tool call."""
        by_call = defaultdict[str | None, list[UUID]](list)
        for row in rows:
            by_call[row.tool_call_id].append(row.id)
        return ImagePlaces([(at, object_id) for at, call_id in self._places for object_id in by_call[call_id]])

    def has(self, item_id: str) -> bool:
        return item_id in self._parts or item_id == self._item_id

    def add(self, item_id: str, delta: str) -> list[str]:
        """The pieces to be emitted now."""
        ended = self.finish() if item_id != self._item_id else []
        self._item_id = item_id
        return [*ended, *self._pieces(self._links.feed(delta))]

    def finish(self) -> list[str]:
        """The pieces that were held back, at the end of an item's text."""
        return self._pieces(self._links.finish())

    def _pieces(self, text: str) -> list[str]:
        if not text:
            return []
        begins = self._item_id not in self._parts and bool(str(self))
        self._parts.setdefault(self._item_id, []).append(text)
        pieces = cut(text)
        return [BREAK, *pieces] if begins else pieces
