"""The call to the provider that is not settled yet: what it was expected to use, what came, what is reported of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app import metrics
from app.provider.usage import ReportedPicture, ResponseReport
from app.usage.estimates import CallEstimate
from app.usage.kinds import Quantity
from app.usage.models import ProviderCall
from app.usage.prices import Priced, Prices
from app.usage.reports import Picture, Report, count_of, json_of

# As the provider calls responses that it has ended by itself.
ENDED = ("completed", "failed", "incomplete")


@dataclass
class OpenCall:
    """`number` counts from 1 in the run; `asked_at` says which prices hold; `response_id` is None until it is named."""

    number: int
    agent_key: str
    estimate: CallEstimate
    asked_at: datetime
    response_id: str | None = None
    # Nothing was accepted: it cost nothing.
    refused: bool = False
    # The provider has sent the last event; `report` is what that said.
    ended: bool = False
    report: ResponseReport | None = None
    characters: int = 0
    # Of an earlier attempt, which may be the same text.
    recalled_characters: int = 0
    pictures: dict[str, Picture] = field(default_factory=dict[str, Picture])
    partials: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    @classmethod
    def of(cls, row: ProviderCall) -> "OpenCall":
        """As it was written down."""
        estimate = CallEstimate(row.model, row.image_model, row.characters, row.given_tokens)
        return cls(row.number, row.agent_key, estimate, row.asked_at, row.response_id)

    def end(self, report: ResponseReport | None) -> None:
        self.ended = True
        self.report = report or self.report

    def read(self, report: ResponseReport) -> None:
        """What the provider says of a response that nobody listens to any more."""
        self.end(report)
        self.ended = report.status in ENDED
        self.count_tokens()

    def count_tokens(self) -> None:
        """As soon as they are reported, which is once for each call."""
        if self.report is not None:
            estimate, completed = self.estimate, self.report.status == "completed"
            metrics.tokens_used(estimate.model, estimate.image_model, usage_of(self.report), completed=completed)

    def add_picture(self, tool_call_id: str, options: dict[str, Any]) -> None:
        size, quality = options.get("size"), options.get("quality")
        self.pictures[tool_call_id] = Picture(tool_call_id, size, quality, options.get("frame_count") or 1)

    def entries(self, prices: Prices) -> list[Priced]:
        """What is booked: reported use wins; where none is reported though something was accepted, an estimate.

        A refused call cost nothing, nor did one that the provider ended before anything came, unless it completed.
        """
        report = self.report
        tier = report.service_tier if report and report.usage else None
        return prices.price(self._quantities(prices), at=self.asked_at, tier=tier)

    def _quantities(self, prices: Prices) -> list[Quantity]:
        if self.refused:
            return []
        if self.report is not None and self.report.usage is not None:
            return self._reported(prices, self.report).quantities()
        characters = max(self.characters, self.recalled_characters)
        came = self._with_partials(self.pictures.values())
        early = sum(tool_call_id not in self.pictures for tool_call_id, _ in self.partials)
        completed = self.report is not None and self.report.status == "completed"
        if self.ended and not (completed or characters or came or early):
            return []
        return self.estimate.received(characters, came, early)

    def _reported(self, prices: Prices, report: ResponseReport) -> Report:
        named = {one.tool_call_id: self._known(one) for one in report.pictures}
        return Report(
            model=report.model or self.estimate.model,
            image_model=report.image_model or self.estimate.image_model or prices.default_image_model,
            usage=report.usage,
            tool_usage=report.tool_usage,
            svg_usage=report.svg_usage,
            containers=report.containers,
            # One that was stopped may not name what had come.
            pictures=self._with_partials({**self.pictures, **named}.values()),
            given_tokens=self.estimate.given_tokens,
        )

    def _known(self, one: ReportedPicture) -> Picture:
        """What the item does not name is as it was asked for."""
        asked = self.pictures.get(one.tool_call_id, Picture(one.tool_call_id))
        return Picture(one.tool_call_id, one.size or asked.size, one.quality or asked.quality, one.frames)

    def _with_partials(self, found: Iterable[Picture]) -> list[Picture]:
        return [
            Picture(one.tool_call_id, one.size, one.quality, one.frames, self._partials_of(one.tool_call_id))
            for one in found
        ]

    def _partials_of(self, tool_call_id: str) -> int:
        return sum(call == tool_call_id for call, _ in self.partials)


def usage_of(report: ResponseReport | None) -> dict[str, int]:
    """As a run shows it: tokens by kind, of which the cached ones are a part of the input."""
    usage, tools = (report.usage, report.tool_usage) if report else (None, None)
    image = json_of(tools, "image_gen")
    return {
        "input_tokens": count_of(usage, "input_tokens"),
        "cached_input_tokens": count_of(json_of(usage, "input_tokens_details"), "cached_tokens"),
        "output_tokens": count_of(usage, "output_tokens"),
        "image_input_tokens": count_of(image, "input_tokens"),
        "image_output_tokens": count_of(image, "output_tokens"),
    }
