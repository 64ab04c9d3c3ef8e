"""What a response reports becomes disjoint entries, whose sum is a calculation by hand, to the nano-dollar."""

import os
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from app.provider.usage import ResponseReport
from app.usage import pictures
from app.usage.estimates import CallEstimate
from app.usage.kinds import Basis, Kind
from app.usage.prices import Priced, load_prices
from app.usage.reports import Picture, Report, image_counts
from app.worker.open_call import OpenCall
from tests.usage import hand

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PRICES = load_prices()
CASES = 500 if os.environ.get("EASEL_PROVE") else 200
QUALITIES, SIZES = ("low", "medium", "high"), ("1024x1024", "1024x1536", "1536x1024", "1536x864")


def priced(report: Report, tier: str | None = None) -> list[Priced]:
    return PRICES.price(report.quantities(), at=NOW, tier=tier)


def total(entries: list[Priced]) -> int:
    return sum(entry.cost_nano or 0 for entry in entries)


@some.composite
def usages(draw: Any) -> dict[str, Any]:
    count = some.integers(0, 400_000)
    cached, written, plain = draw(count), draw(count), draw(count)
    details: dict[str, Any] = {}
    for_12h = draw(some.integers(0, written))
    if draw(some.booleans()):
        details["cached_tokens"] = cached
    if draw(some.booleans()):
        details["cache_write_tokens"] = written
        if draw(some.booleans()):
            details["cache_write_tokens_details"] = {"ttl_30m_tokens": written - for_12h, "ttl_12h_tokens": for_12h}
    given_tokens = plain + (details.get("cached_tokens") or 0) + (details.get("cache_write_tokens") or 0)
    found = {"input_tokens": given_tokens, "output_tokens": draw(count)}
    return found | ({"input_tokens_details": details} if draw(some.booleans()) or details else {})


@some.composite
def image_usages(draw: Any) -> dict[str, Any]:
    count = some.integers(0, 20_000)
    text, looked, made = draw(count), draw(count), draw(some.integers(1, 20_000))
    found: dict[str, Any] = {
        "input_tokens": text + looked,
        "input_tokens_details": {"text_tokens": text, "image_tokens": looked},
        "output_tokens": made,
        "total_tokens": text + looked + made,
    }
    if draw(some.booleans()):
        written = draw(some.integers(0, made))
        found["output_tokens_details"] = {"text_tokens": written, "image_tokens": made - written}
    if draw(some.booleans()):
        found["cached_tokens"] = draw(some.integers(0, text + looked))
        if draw(some.booleans()):
            cached_text = draw(some.integers(0, text))
            cached_image = draw(some.integers(0, looked))
            found["cached_tokens"] = cached_text + cached_image
            found["cached_tokens_details"] = {"cached_text_tokens": cached_text, "cached_image_tokens": cached_image}
    return found


drawn = some.lists(
    some.builds(
        Picture,
        tool_call_id=some.uuids().map(str),
        size=some.sampled_from(SIZES),
        quality=some.sampled_from(QUALITIES),
        partials=some.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)


# The server's threads draw random numbers, too, while hypothesis looks whether a strategy does.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=some.sampled_from(sorted(hand.TEXT)),
    tier=some.sampled_from([None, "default", "auto", "flex", "priority", "ultrafast", "scale"]),
    usage=usages(),
    image_model=some.sampled_from(sorted(hand.IMAGE)),
    image=some.none() | image_usages(),
    shown=drawn,
    searches=some.integers(0, 5),
    containers=some.integers(0, 3),
)
def test_the_entries_are_what_a_hand_calculates(
    model: str,
    tier: str | None,
    usage: dict[str, Any],
    image_model: str,
    image: dict[str, Any] | None,
    shown: list[Picture],
    searches: int,
    containers: int,
) -> None:
    tools: dict[str, Any] = {"web_search": {"num_requests": searches}}
    if image is not None:
        tools["image_gen"] = image
    report = Report(
        model=model,
        image_model=image_model,
        usage=usage,
        tool_usage=tools,
        containers=containers,
        pictures=shown if image is not None else (),
    )
    entries = priced(report, tier)
    weights = [picture.output_tokens(image_model) for picture in shown]
    text = hand.text_cost(model, tier, usage)
    tool_cost = 10_000_000 * searches + 30_000_000 * containers
    drawing = hand.image_cost(image_model, image, weights) if image is not None else 0
    assert total(entries) == (text or 0) + drawing + tool_cost
    assert (text is None) == any(entry.basis == Basis.UNPRICED for entry in entries) or not any(
        entry.of.quantity for entry in entries if entry.of.model == model
    )
    keys = [(entry.of.kind, entry.of.tool_call_id) for entry in entries]
    assert len(set(keys)) == len(keys)
    of_model = [
        entry.of
        for entry in entries
        if entry.of.kind in (Kind.INPUT, Kind.CACHED_INPUT, Kind.CACHE_WRITE, Kind.CACHE_WRITE_12H)
    ]
    assert sum(one.quantity for one in of_model) == usage["input_tokens"]
    if image is not None:
        of_image = [entry.of for entry in entries if entry.of.model == image_model]
        assert sum(one.quantity for one in of_image) == image["input_tokens"] + image["output_tokens"]


# The server's threads draw random numbers, too, while hypothesis looks whether a strategy does.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=CASES, deadline=None)
@given(total=some.integers(0, 100_000), weights=some.lists(some.integers(0, 9_000), min_size=1, max_size=12))
def test_tokens_are_shared_to_the_last_one(total: int, weights: list[int]) -> None:
    found = pictures.apportion(total, weights)
    assert sum(found) == total
    if any(weights):
        assert found == hand.shares(total, weights)
        for share, weight in zip(found, weights, strict=True):
            assert abs(share - total * weight / sum(weights)) < 1


def test_a_picture_without_tool_usage_is_estimated_by_the_published_formula() -> None:
    """All zeros say that its record was left out."""
    usage = {"input_tokens": 100, "output_tokens": 10}
    shown = [Picture("ig_1", "1024x1024", "low", partials=2), Picture("ig_2", "1536x1024", "high")]
    zeros = {"image_gen": {"input_tokens": 0, "output_tokens": 0}}
    for tools in (None, {}, zeros):
        report = Report("gpt-5", "gpt-image-2", usage=usage, tool_usage=tools, pictures=shown, given_tokens=101)
        found = [(e.of.kind, e.of.quantity, e.basis, e.of.tool_call_id) for e in priced(report)]
        assert found == [
            (Kind.INPUT, 100, Basis.REPORTED, None),
            (Kind.OUTPUT, 10, Basis.REPORTED, None),
            (Kind.IMAGE_INPUT, 51, Basis.ESTIMATED, "ig_1"),
            (Kind.IMAGE_OUTPUT, 196 + 200, Basis.ESTIMATED, "ig_1"),
            (Kind.IMAGE_INPUT, 50, Basis.ESTIMATED, "ig_2"),
            (Kind.IMAGE_OUTPUT, 5488, Basis.ESTIMATED, "ig_2"),
        ]


def test_what_the_details_leave_out_is_text_given_and_an_image_made() -> None:
    assert image_counts({"input_tokens": 50, "output_tokens": 1364}) == {
        Kind.IMAGE_TEXT_INPUT: 50,
        Kind.IMAGE_TEXT_CACHED: 0,
        Kind.IMAGE_INPUT: 0,
        Kind.IMAGE_CACHED: 0,
        Kind.IMAGE_OUTPUT: 1364,
        Kind.IMAGE_TEXT_OUTPUT: 0,
    }
    # As it was recorded.
    detailed = {
        "input_tokens": 258,
        "input_tokens_details": {"image_tokens": 194, "text_tokens": 14},
        "output_tokens": 1364,
        "output_tokens_details": {"image_tokens": 1056, "text_tokens": 308},
        "cached_tokens": 100,
    }
    assert image_counts(detailed) == {
        Kind.IMAGE_TEXT_INPUT: 0,
        Kind.IMAGE_TEXT_CACHED: 64,
        Kind.IMAGE_INPUT: 158,
        Kind.IMAGE_CACHED: 36,
        Kind.IMAGE_OUTPUT: 1056,
        Kind.IMAGE_TEXT_OUTPUT: 308,
    }


def test_more_cached_than_given_never_makes_a_credit() -> None:
    usage = {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 0}
    assert [(e.of.kind, e.of.quantity) for e in priced(Report("gpt-5", "gpt-image-2", usage=usage))] == [
        (Kind.CACHED_INPUT, 30)
    ]


def test_a_call_that_reports_zeros_has_an_entry_all_the_same() -> None:
    usage = {"input_tokens": 0, "output_tokens": 0}
    assert [(e.of.kind, e.cost_nano) for e in priced(Report("gpt-5", "gpt-image-2", usage=usage))] == [(Kind.INPUT, 0)]


def test_a_drawing_in_svg_is_billed_at_its_writers_prices_to_its_picture() -> None:
    svg = {"ig_1": {"model": "gpt-5-nano", "input_tokens": 40, "output_tokens": 1000, "reasoning_tokens": 0}}
    usage = {"input_tokens": 1, "output_tokens": 1}
    entries = priced(Report("gpt-5", "gpt-image-2", usage=usage, svg_usage=svg), "flex")
    assert [(e.of.kind, e.of.model, e.cost_nano, e.of.tool_call_id) for e in entries[2:]] == [
        (Kind.SVG_INPUT, "gpt-5-nano", 40 * 50, "ig_1"),
        (Kind.SVG_OUTPUT, "gpt-5-nano", 1000 * 400, "ig_1"),
    ]


def test_a_call_whose_end_was_lost_is_estimated_by_what_came() -> None:
    call = CallEstimate("gpt-5", "gpt-image-2", characters=3001, given_tokens=64)
    assert [(one.kind, one.quantity) for one in call.input()] == [(Kind.INPUT, 1001 + 1500 + 64)]
    found = call.received(10, [Picture("ig_1", "1024x1024", "low", partials=1)], partials=2)
    assert [(one.kind, one.quantity, one.tool_call_id) for one in found] == [
        (Kind.INPUT, 2565, None),
        (Kind.OUTPUT, 4, None),
        (Kind.IMAGE_INPUT, 64, None),
        (Kind.IMAGE_OUTPUT, 200, None),
        (Kind.IMAGE_OUTPUT, 296, "ig_1"),
    ]
    assert {one.basis for one in found} == {Basis.ESTIMATED}
    assert [one.kind for one in call.received(0, [], 0)] == [Kind.INPUT]


def test_a_stopped_call_that_reports_its_use_and_not_its_picture_is_booked_with_both() -> None:
    call = OpenCall(1, "designer", CallEstimate("gpt-5", "gpt-image-2", characters=300), NOW)
    call.add_picture("ig_1", {"size": "1024x1024", "quality": "low"})
    call.partials.add(("ig_1", 0))
    usage = {"input_tokens": 10, "output_tokens": 2}
    call.report = ResponseReport("cancelled", "gpt-5", None, usage, None, {}, None, 0, [])
    assert [(one.of.kind, one.of.quantity, one.basis, one.of.tool_call_id) for one in call.entries(PRICES)] == [
        (Kind.INPUT, 10, Basis.REPORTED, None),
        (Kind.OUTPUT, 2, Basis.REPORTED, None),
        (Kind.IMAGE_OUTPUT, 296, Basis.ESTIMATED, "ig_1"),
    ]


def test_what_came_twice_under_two_attempts_is_estimated_once() -> None:
    call = OpenCall(1, "assistant", CallEstimate("gpt-5", None, characters=300), NOW)
    call.characters, call.recalled_characters = 30, 90
    assert [(one.of.kind, one.of.quantity) for one in call.entries(PRICES)] == [(Kind.INPUT, 100), (Kind.OUTPUT, 30)]


@pytest.mark.parametrize(("status", "kinds"), [("failed", []), ("cancelled", [Kind.INPUT])])
def test_a_response_that_is_read_at_last_costs_what_it_would_have_as_a_stream(status: str, kinds: list[Kind]) -> None:
    call = OpenCall(1, "assistant", CallEstimate("gpt-5", None, characters=300), NOW)
    call.read(ResponseReport(status, "gpt-5", None, None, None, {}, None, 0, []))
    assert [one.of.kind for one in call.entries(PRICES)] == kinds
