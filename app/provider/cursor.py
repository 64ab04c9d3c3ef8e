"""How far a response's stream was read, and whether it is worth resuming."""

from typing import cast

from openai.types.responses import ResponseStreamEvent

from app.provider.errors import ProviderError, ProviderSilent, ProviderUnreachable

RESUME_TRIES = 5
# With the pauses between them a minute: as long as a network may be down before a paid response is given up.
CONNECT_TRIES = 16
# A silent stream has already taken the time that silence may take.
SILENT_TRIES = 1
MAX_PAUSE_SECONDS = 5.0


class StreamCursor:
    def __init__(self, response_id: str | None) -> None:
        self.response_id = response_id
        self.sequence_number: int | None = None
        self.completed = False
        self._breaks = 0
        self._read = 0

    def accept(self, event: ResponseStreamEvent) -> bool:
        """Advance past the event; False for an event that was read before the stream was resumed."""
        number = cast(int | None, getattr(event, "sequence_number", None))
        if self._breaks and number is not None and self.sequence_number is not None and number <= self.sequence_number:
            return False
        self._breaks = 0
        self._read += 1
        self.sequence_number = self.sequence_number if number is None else number
        if event.type == "response.created":
            self.response_id = event.response.id
        self.completed = self.completed or event.type == "response.completed"
        return True

    def pause_after(self, broken: ProviderError) -> float | None:
        """Seconds to wait before the stream is resumed; None where that is no use."""
        self._breaks += 1
        match broken:
            case ProviderSilent():
                tries = SILENT_TRIES
            case ProviderUnreachable():
                tries = CONNECT_TRIES
            case _:
                tries = RESUME_TRIES
        lost = self.response_id is None or (self._read and self.sequence_number is None)
        if lost or self._breaks > tries:
            return None
        return min(0.1 * 2**self._breaks, MAX_PAUSE_SECONDS)
