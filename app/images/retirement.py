"""The models that OpenAI has shut down or will, with their days: the one table to keep up to date."""

from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Retirement:
    """`models` is a name or a pattern; from `day` on the provider refuses them."""

    models: str
    day: date
    replacement: str


# Source: OpenAI's deprecations page, November 2026.
RETIREMENTS = (
    Retirement("gpt-image-1", date(2026, 10, 23), "gpt-image-2.5-sunburst"),
    Retirement("gpt-image-1.5", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Retirement("gpt-image-1-mini", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Retirement("chatgpt-image-latest", date(2026, 12, 1), "gpt-image-2.6-sunburst"),
    Retirement("gpt-5*", date(2026, 12, 11), "gpt-6.1-sol"),
)


def notice(model: str, today: date) -> str | None:
    """One plain sentence about a model that is gone or going, None about any other."""
    found = retirement_of(model)
    if found is None:
        return None
    if found.day <= today:
        return f"{model} was shut down on {found.day}; use {found.replacement}."
    return f"{model} will be shut down on {found.day}; move to {found.replacement} before."


def is_retired(model: str, today: date) -> bool:
    found = retirement_of(model)
    return found is not None and found.day <= today


def retirement_of(model: str) -> Retirement | None:
    return next((row for row in RETIREMENTS if fnmatchcase(model, row.models)), None)
