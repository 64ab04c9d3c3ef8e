"""The time that all processes share."""

from datetime import UTC, datetime, timedelta


class SharedClock:
    """Postgres' clock, whose time every transaction shows: machines whose own clocks differ agree by it."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def observe(self, shown: datetime) -> None:
        self._ahead = shown - _now()

    def now(self) -> datetime:
        return _now() + self._ahead


def _now() -> datetime:
    """By this machine's clock."""
    return datetime.now(UTC)
