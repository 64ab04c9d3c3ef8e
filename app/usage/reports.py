"""What one response says that it used, as quantities of disjoint kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from app.usage import pictures
from app.usage.kinds import Basis, Kind, Quantity

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """One that came, with the options that are known of it, and how many previews came before it."""

    tool_call_id: str
    size: str | None = None
    quality: str | None = None
    frames: int = 1
    partials: int = 0

    def output_tokens(self, model: str) -> int:
        drawn = pictures.output_tokens(model, quality=self.quality, size=self.size, frames=self.frames)
        return drawn + pictures.TOKENS_PER_PARTIAL * self.partials


@dataclass(frozen=True)
class Report:
    """A response as far as it was received.

    `model` and `image_model` are those that answered, or were asked where it names none; `usage`, `tool_usage` and the
    `svg_usage` by tool call are the provider's JSON, None where it sent none. `given_tokens` is the estimate for the
    pictures that the image model was given.
    """

    model: str
    image_model: str
    usage: Json | None = None
    tool_usage: Json | None = None
    svg_usage: Mapping[str, Json] = field(default_factory=dict[str, Json])
    containers: int = 0
    pictures: Sequence[Picture] = ()
    given_tokens: int = 0

    def quantities(self) -> list[Quantity]:
        """Of all kinds that were used; where nothing at all was, that none was."""
        tools = self.tool_usage or {}
        searches = count_of(json_of(tools, "web_search"), "num_requests")
        found = [
            *self._of_model(),
            *self._of_image_model(json_of(tools, "image_gen")),
            *self._of_svgs(),
            Quantity(Kind.WEB_SEARCHES, self.model, searches),
            Quantity(Kind.CODE_INTERPRETER_SESSIONS, self.model, self.containers),
        ]
        return [one for one in found if one.quantity] or [Quantity(Kind.INPUT, self.model, 0)]

    def _of_model(self) -> list[Quantity]:
        usage = self.usage or {}
        details = json_of(usage, "input_tokens_details")
        cached, written = count_of(details, "cached_tokens"), count_of(details, "cache_write_tokens")
        for_12h = min(count_of(json_of(details, "cache_write_tokens_details"), "ttl_12h_tokens"), written)
        counts = {
            Kind.INPUT: max(count_of(usage, "input_tokens") - cached - written, 0),
            Kind.CACHED_INPUT: cached,
            Kind.CACHE_WRITE: written - for_12h,
            Kind.CACHE_WRITE_12H: for_12h,
            Kind.OUTPUT: count_of(usage, "output_tokens"),
        }
        return [Quantity(kind, self.model, count) for kind, count in counts.items()]

    def _of_image_model(self, image: Json) -> list[Quantity]:
        counts = image_counts(image)
        if self.pictures and not any(counts.values()):
            # Calls without usage records are left out of the sums.
            return self._estimated()
        weights = [picture.output_tokens(self.image_model) for picture in self.pictures]
        found: list[Quantity] = []
        for kind, count in counts.items():
            if not self.pictures:
                found.append(Quantity(kind, self.image_model, count))
                continue
            shares = pictures.apportion(count, weights)
            found += [
                Quantity(kind, self.image_model, share, tool_call_id=picture.tool_call_id)
                for picture, share in zip(self.pictures, shares, strict=True)
            ]
        return found

    def _estimated(self) -> list[Quantity]:
        given = pictures.apportion(self.given_tokens, [1] * len(self.pictures))
        return [
            Quantity(kind, self.image_model, count, Basis.ESTIMATED, picture.tool_call_id)
            for picture, share in zip(self.pictures, given, strict=True)
            for kind, count in (
                (Kind.IMAGE_INPUT, share),
                (Kind.IMAGE_OUTPUT, picture.output_tokens(self.image_model)),
            )
        ]

    def _of_svgs(self) -> list[Quantity]:
        return [
            Quantity(kind, str(usage.get("model") or self.model), count_of(usage, name), tool_call_id=tool_call_id)
            for tool_call_id, usage in self.svg_usage.items()
            for kind, name in ((Kind.SVG_INPUT, "input_tokens"), (Kind.SVG_OUTPUT, "output_tokens"))
        ]


def image_counts(image: Json) -> dict[Kind, int]:
    """`tool_usage.image_gen` by kind. What the details leave out of a total is text given, and image made.

    An omitted count of cached tokens is unknown, and priced as not cached; without details text is cached first.
    """
    details, made = json_of(image, "input_tokens_details"), json_of(image, "output_tokens_details")
    looked_at = min(count_of(details, "image_tokens"), count_of(image, "input_tokens"))
    read = count_of(image, "input_tokens") - looked_at
    cached = count_of(image, "cached_tokens")
    if image.get("cached_tokens_details") is None:
        cached_text = min(cached, read)
        cached_image = min(cached - cached_text, looked_at)
    else:
        parts = json_of(image, "cached_tokens_details")
        cached_text = min(count_of(parts, "cached_text_tokens"), read)
        cached_image = min(count_of(parts, "cached_image_tokens"), looked_at)
    written = min(count_of(made, "text_tokens"), count_of(image, "output_tokens"))
    return {
        Kind.IMAGE_TEXT_INPUT: read - cached_text,
        Kind.IMAGE_TEXT_CACHED: cached_text,
        Kind.IMAGE_INPUT: looked_at - cached_image,
        Kind.IMAGE_CACHED: cached_image,
        Kind.IMAGE_OUTPUT: count_of(image, "output_tokens") - written,
        Kind.IMAGE_TEXT_OUTPUT: written,
    }


def json_of(parent: Json | None, name: str) -> Json:
    """The object of that name; empty where there is none."""
    found = (parent or {}).get(name)
    return cast(Json, found) if isinstance(found, Mapping) else {}


def count_of(parent: Json | None, name: str) -> int:
    """The count of that name; 0 where there is none."""
    found = (parent or {}).get(name)
    return max(found, 0) if isinstance(found, int) else 0
