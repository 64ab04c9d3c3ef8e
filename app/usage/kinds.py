"""What the provider sells: the kinds of a ledger entry. They are disjoint: no token is counted under two."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """`input_tokens` are neither cached nor written to the cache; `output_tokens` hold the reasoning."""

    INPUT = "input_tokens"
    CACHED_INPUT = "cached_input_tokens"
    CACHE_WRITE = "cache_write_tokens"
    CACHE_WRITE_12H = "cache_write_12h_tokens"
    OUTPUT = "output_tokens"
    WEB_SEARCHES = "web_searches"
    CODE_INTERPRETER_SESSIONS = "code_interpreter_sessions"
    IMAGE_TEXT_INPUT = "image_text_input_tokens"
    IMAGE_TEXT_CACHED = "image_text_cached_tokens"
    IMAGE_INPUT = "image_input_tokens"
    IMAGE_CACHED = "image_cached_tokens"
    IMAGE_OUTPUT = "image_output_tokens"
    IMAGE_TEXT_OUTPUT = "image_text_output_tokens"
    SVG_INPUT = "svg_input_tokens"
    SVG_OUTPUT = "svg_output_tokens"


class Basis(StrEnum):
    """Where an amount comes from, the best first."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    UNPRICED = "unpriced"


WORSE = {basis: rank for rank, basis in enumerate(Basis)}


@dataclass(frozen=True)
class Quantity:
    """So much of a kind, sold by a model; `tool_call_id` names the picture that it went into."""

    kind: Kind
    model: str
    quantity: int
    basis: Basis = Basis.REPORTED
    tool_call_id: str | None = None
