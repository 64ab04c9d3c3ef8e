"""Models that OpenAI has shut down or will shut down: the one table to keep up to date."""

from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Deprecation:
    """`models` is a name or a pattern; the provider rejects them from `shutdown` on."""

    models: str
    shutdown: date
    replacement: str


# Source: OpenAI's deprecations page, November 2026.
DEPRECATIONS = (
    Deprecation("gpt-image-1", date(2026, 10, 23), "gpt-image-2.5-sunburst"),
    Deprecation("gpt-image-1.5", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Deprecation("gpt-image-1-mini", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Deprecation("chatgpt-image-latest", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Deprecation("gpt-5*", date(2026, 12, 11), "gpt-6.1-sol"),
)


def warning(model: str, today: date) -> str | None:
    """One sentence about a deprecated model, None about any other."""
    found = deprecation_of(model)
    if found is None:
        return None
    if found.shutdown <= today:
        return f"{model} was shut down on {found.shutdown}; use {found.replacement}."
    return f"{model} will be shut down on {found.shutdown}; move to {found.replacement} before."


def is_shut_down(model: str, today: date) -> bool:
    found = deprecation_of(model)
    return found is not None and found.shutdown <= today


def deprecation_of(model: str) -> Deprecation | None:
    return next((row for row in DEPRECATIONS if fnmatchcase(model, row.models)), None)
