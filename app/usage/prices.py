"""What a call costs: prices.toml, or the file that PRICES_FILE names, and the arithmetic over it."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app import EaselError
from app.usage.kinds import Basis, Kind, Quantity
from app.usage.money import NANO

SHIPPED = Path(__file__).with_name("prices.toml")
TOKENS = 1_000_000
# Before a response has run, and where one is missing: the provider's standard.
STANDARD_TIERS = (None, "", "default", "auto")
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")

Row = TypeVar("Row", bound="_OfModels")

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Factor = Annotated[Decimal, Field(gt=0, le=1_000, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LongContext(_Strict):
    """A whole request with more than `over` input tokens, cached and written ones among them, is dearer."""

    over: Annotated[int, Field(gt=0)]
    input: Factor
    output: Factor


class _Dated(_Strict):
    """From `since` on; `source` says where the prices were read."""

    since: date
    source: Annotated[str, Field(min_length=1)] | None = None


class _OfModels(_Dated):
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]

    def fit(self, model: str, family: str) -> int:
        """How well the row fits: the length of the name that finds the model or its family, 0 where none does."""
        return max(_fit(name, model, family) for name in self.models)


class TextPrices(_OfModels):
    """USD per 1,000,000 tokens of a model that writes."""

    input: Usd
    cached_input: Usd
    cache_write: Usd
    cache_write_12h: Usd
    output: Usd
    long_context: LongContext | None = None
    tiers: dict[str, Factor] = {}


class ImagePrices(_OfModels):
    """USD per 1,000,000 tokens of a model that draws."""

    text_input: Usd
    text_cached: Usd
    image_input: Usd
    image_cached: Usd
    image_output: Usd
    text_output: Usd


class ToolPrices(_Dated):
    """USD for one search, and for one session."""

    web_search: Usd
    code_interpreter_session: Usd


_TEXT = {
    Kind.INPUT: "input",
    Kind.CACHED_INPUT: "cached_input",
    Kind.CACHE_WRITE: "cache_write",
    Kind.CACHE_WRITE_12H: "cache_write_12h",
    Kind.OUTPUT: "output",
}
_SVG = {Kind.SVG_INPUT: "input", Kind.SVG_OUTPUT: "output"}
_IMAGE = {
    Kind.IMAGE_TEXT_INPUT: "text_input",
    Kind.IMAGE_TEXT_CACHED: "text_cached",
    Kind.IMAGE_INPUT: "image_input",
    Kind.IMAGE_CACHED: "image_cached",
    Kind.IMAGE_OUTPUT: "image_output",
    Kind.IMAGE_TEXT_OUTPUT: "text_output",
}
_TOOLS = {Kind.WEB_SEARCHES: "web_search", Kind.CODE_INTERPRETER_SESSIONS: "code_interpreter_session"}
_INPUT_KINDS = frozenset(_TEXT) - {Kind.OUTPUT}


class PricesError(EaselError):
    """A prices file that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Priced:
    """A quantity and what it costs, in nano-dollars; `nano_each` is its price then. Both None without a price."""

    of: Quantity
    nano_each: Decimal | None
    cost_nano: int | None

    @property
    def basis(self) -> Basis:
        return Basis.UNPRICED if self.cost_nano is None else self.of.basis


class Prices(_Strict):
    """All rows of the table."""

    default_image_model: Annotated[str, Field(min_length=1)]
    text: list[TextPrices]
    image: list[ImagePrices]
    tools: Annotated[list[ToolPrices], Field(min_length=1)]

    def has(self, kind: Kind, model: str, at: datetime) -> bool:
        """Whether the model has a price then for what it makes."""
        return self._nano_each(Quantity(kind, model, 1), at, None, 0) is not None

    def price(self, quantities: Iterable[Quantity], *, at: datetime, tier: str | None = None) -> list[Priced]:
        """The quantities of one call that was sent `at` that time and answered by that service tier."""
        found = list(quantities)
        context = sum(one.quantity for one in found if one.kind in _INPUT_KINDS)
        return [self._price(one, at, tier, context) for one in found]

    def _price(self, one: Quantity, at: datetime, tier: str | None, context: int) -> Priced:
        each = self._nano_each(one, at, tier, context)
        if each is None:
            return Priced(one, None, None)
        # Whole but for a tier's half of a nano-dollar.
        return Priced(one, each, int((each * one.quantity).to_integral_value(ROUND_HALF_EVEN)))

    def _nano_each(self, one: Quantity, at: datetime, tier: str | None, context: int) -> Decimal | None:
        if one.kind in _TOOLS:
            tools = _newest(self.tools, at)
            return None if tools is None else getattr(tools, _TOOLS[one.kind]) * NANO
        if one.kind in _IMAGE:
            image = _best(self.image, one.model, at)
            return None if image is None else getattr(image, _IMAGE[one.kind]) * NANO / TOKENS
        text = _best(self.text, one.model, at)
        if text is None:
            return None
        if one.kind in _SVG:
            return getattr(text, _SVG[one.kind]) * NANO / TOKENS
        factor = Decimal(1) if tier in STANDARD_TIERS else text.tiers.get(tier or "")
        if factor is None:
            return None
        if text.long_context is not None and context > text.long_context.over:
            factor *= text.long_context.output if one.kind == Kind.OUTPUT else text.long_context.input
        return getattr(text, _TEXT[one.kind]) * factor * NANO / TOKENS


def load_prices(file: Path | None = None) -> Prices:
    """The shipped table, or the operator's. Raises PricesError."""
    path = file or SHIPPED
    try:
        found = tomllib.loads(path.read_text(), parse_float=Decimal)
        return _PRICES.validate_python(found)
    except OSError as error:
        raise PricesError(f"PRICES_FILE: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise PricesError(f"PRICES_FILE: {path} is not a text in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise PricesError(f"PRICES_FILE: {path} is not TOML: {error}.") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        raise PricesError(f"PRICES_FILE: {path}: {place}: {_in_words(fault['msg'], fault['type'])}.") from None


_PRICES = TypeAdapter(Prices)


def _in_words(message: str, kind: str) -> str:
    if kind == "missing":
        return "this price is missing"
    if kind == "extra_forbidden":
        return "there is no such price"
    return message[:1].lower() + message[1:]


def _fit(name: str, model: str, family: str) -> int:
    if name.endswith("*"):
        return len(name) - 1 if model.startswith(name[:-1]) else 0
    # An exact name is better than any beginning.
    return TOKENS + len(name) if name in (model, family) else 0


def _best(rows: Sequence[Row], model: str, at: datetime) -> Row | None:
    family, day = _SNAPSHOT.sub("", model), at.date()
    known = [(fit, row.since, row) for row in rows if row.since <= day and (fit := row.fit(model, family))]
    return max(known, key=lambda found: found[:2])[2] if known else None


def _newest(rows: Sequence[ToolPrices], at: datetime) -> ToolPrices | None:
    return max((row for row in rows if row.since <= at.date()), key=lambda row: row.since, default=None)
