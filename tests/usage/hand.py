"""What a response costs, calculated by hand: apart from the code, straight from the rules and in fractions."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

# USD per million: input, cached, write, write for 12 hours, output; and whether a long request is dearer.
TEXT: dict[str, tuple[tuple[str, str, str, str, str], bool]] = {
    "gpt-6.1-sol": (("2", "0.10", "2.50", "5", "10"), True),
    "gpt-5.6-luna": (("0.20", "0.02", "0.25", "0.50", "1.20"), True),
    "gpt-5": (("1.25", "0.125", "1.25", "1.25", "10"), False),
    "gpt-5.6-sol": (("4", "0.40", "5", "10", "20"), True),
    "gpt-5-nano": (("0.05", "0.005", "0.05", "0.05", "0.40"), False),
    "gpt-4.1": (("2", "0.50", "2", "2", "8"), False),
    "gpt-4.1-mini": (("0.40", "0.10", "0.40", "0.40", "1.60"), False),
    "gpt-4o": (("2.50", "1.25", "2.50", "2.50", "10"), False),
    "o4-mini": (("1.10", "0.275", "1.10", "1.10", "4.40"), False),
    "gpt-4o-mini": (("0.15", "0.075", "0.15", "0.15", "0.60"), False),
}
# Text in, cached, image in, cached, image out, text out.
IMAGE = {
    "gpt-image-2": ("5", "1.25", "8", "2", "30", "10"),
    "gpt-image-2.6-sunburst": ("5", "1.25", "8", "2", "30", "10"),
    "gpt-image-1-mini": ("2", "0.20", "2.50", "0.25", "8", "8"),
}
TIERS: dict[str, dict[str, str]] = {
    "gpt-6.1-sol": {"flex": "0.5", "priority": "2", "ultrafast": "6"},
    "gpt-5.6-luna": {"flex": "0.5", "priority": "2"},
    "gpt-5": {"flex": "0.5", "priority": "2"},
    "gpt-5.6-sol": {"flex": "0.5", "priority": "2"},
    "gpt-5-nano": {"flex": "0.5", "priority": "2"},
    "gpt-4.1-mini": {"flex": "0.5", "priority": "1.75"},
    "gpt-4o": {"flex": "0.5", "priority": "1.7"},
    "o4-mini": {"flex": "0.5"},
    "gpt-4.1": {"flex": "0.5", "priority": "1.75"},
    "gpt-4o-mini": {"flex": "0.5", "priority": "1.7"},
}
LONG = 272_000


def json_of(parent: Mapping[str, Any], name: str) -> dict[str, Any]:
    return cast(dict[str, Any], parent.get(name) or {})


def nano(tokens: int, usd_per_million: str, factor: Fraction = Fraction(1)) -> int:
    """Rounded to whole nano-dollars, a half to the even one."""
    return round(tokens * Fraction(usd_per_million) * factor * 1000)


def text_cost(model: str, tier: str | None, usage: Mapping[str, Any]) -> int | None:
    """None where the tier has no price."""
    prices, is_dearer = TEXT[model]
    factor = Fraction(1) if tier in (None, "default", "auto") else Fraction(TIERS[model].get(tier, "0"))
    if not factor:
        return None
    details = json_of(usage, "input_tokens_details")
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    for_long = json_of(details, "cache_write_tokens_details").get("ttl_12h_tokens") or 0
    plain = usage["input_tokens"] - cached - written
    long = is_dearer and usage["input_tokens"] > LONG
    given, made = factor * (2 if long else 1), factor * (Fraction(3, 2) if long else 1)
    counts = (plain, cached, written - for_long, for_long)
    parts = [nano(count, price, given) for count, price in zip(counts, prices[:4], strict=True)]
    return sum(parts) + nano(usage["output_tokens"], prices[4], made)


def image_cost(model: str, used: Mapping[str, Any], weights: Sequence[int]) -> int:
    """Of all pictures together; the tokens of each are whole, so the sum does not depend on how they are shared."""
    details = json_of(used, "input_tokens_details")
    looked = details.get("image_tokens") or 0
    read = used["input_tokens"] - looked
    known = used.get("cached_tokens_details")
    cached = used.get("cached_tokens") or 0
    if known is None:
        cached_text = min(cached, read)
        cached_image = min(cached - cached_text, looked)
    else:
        cached_text, cached_image = known["cached_text_tokens"], known["cached_image_tokens"]
    written = json_of(used, "output_tokens_details").get("text_tokens") or 0
    counts = (
        read - cached_text,
        cached_text,
        looked - cached_image,
        cached_image,
        used["output_tokens"] - written,
        written,
    )
    return sum(
        nano(share, price)
        for count, price in zip(counts, IMAGE[model], strict=True)
        for share in shares(count, weights)
    )


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """By the largest remainder."""
    exact = [Fraction(total * weight, sum(weights)) for weight in weights]
    found = [int(share) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda place: (found[place] - exact[place], place))
    for place in by_rest[: total - sum(found)]:
        found[place] += 1
    return found


def response_cost(response: Mapping[str, Any]) -> int:
    """Of a whole response that reports all that it used; its pictures share alike."""
    cost = text_cost(response["model"], response["service_tier"], response["usage"])
    assert cost is not None
    drawn = [item for item in response["output"] if item["type"] == "image_generation_call" and item.get("result")]
    tools = response["tool_usage"]
    if tools["image_gen"]["total_tokens"]:
        (tool,) = [tool for tool in response["tools"] if tool["type"] == "image_generation"]
        cost += image_cost(tool.get("model") or "gpt-image-2.6-sunburst", tools["image_gen"], [1] * max(len(drawn), 1))
    return cost + 10_000_000 * tools["web_search"]["num_requests"]
