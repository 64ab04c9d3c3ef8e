from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


def current_time(timezone: str | None = None) -> str:
    """Return the present date and time in ISO 8601.

    Args:
        timezone: An IANA time zone such as Europe/Berlin; UTC without it.
    """
    try:
        zone = ZoneInfo(timezone) if timezone else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"There is no time zone {timezone!r}; name one of the IANA database, such as Europe/Berlin."
    return datetime.now(zone).isoformat(timespec="seconds")
