"""What is said of a faulty field: what it accepts, in words for people, by the type of pydantic's error."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from app.input_limits import STORABLE

Context = Mapping[str, Any]

# For a type of error that neither table below has.
UNKNOWN = "not possible"
# A reason repeats characters of the address: as many as a caller sends.
MAX_REASON = 150

_DATE = "a date such as 2026-01-31"
_MOMENT = "a moment with its time zone, such as 2026-01-31T12:00:00Z"
_NUMBER = "a whole number"
_OBJECT = "a JSON object"
_UUID = "a UUID"

FIXED: dict[str, str] = {
    "missing": "required",
    "extra_forbidden": "unknown field",
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
    "list_type": "a list",
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": _NUMBER,
    "int_parsing": _NUMBER,
    "int_parsing_size": _NUMBER,
    "int_from_float": _NUMBER,
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
    "uuid_version": _UUID,
    "date_type": _DATE,
    "date_parsing": _DATE,
    "date_from_datetime_parsing": _DATE,
    "date_from_datetime_inexact": _DATE,
    "datetime_type": _MOMENT,
    "datetime_parsing": _MOMENT,
    "datetime_from_date_parsing": _MOMENT,
    "datetime_object_invalid": _MOMENT,
    "timezone_aware": _MOMENT,
}

# What a pattern of ours means; any other pattern is shown as it is.
PATTERNS = {STORABLE: "leave out the character U+0000"}


def message_of(fault: Mapping[str, Any]) -> str:
    """Of one of `RequestValidationError.errors()`; never pydantic's own sentence."""
    kind = fault["type"]
    if kind == "json_invalid":
        return f"valid JSON (character {fault['loc'][-1] + 1} is the first that does not fit)"
    if kind in BUILT:
        return BUILT[kind](fault.get("ctx") or {})
    if kind == "model_attributes_type" and isinstance(fault.get("input"), bytes):
        # FastAPI leaves a body unparsed whose type is not said to be JSON.
        return f"{_OBJECT}, sent with `Content-Type: application/json`"
    return FIXED.get(kind, UNKNOWN)


def _value_error(context: Context) -> str:
    """Our validators raise what is to be said; an address comes with the reason of email-validator."""
    if "reason" in context:
        reason = str(context["reason"]).rstrip(".").replace("It should ", "It must ")
        return f"an email address such as ada@example.com ({reason[:1].lower()}{reason[1:MAX_REASON]})"
    return str(context.get("error", UNKNOWN))


def _choice(context: Context) -> str:
    """`'a', 'b' or 'c'` is how pydantic lists them."""
    words = [word.strip("'") for word in re.split(r", | or ", str(context["expected"]))]
    return f"one of {', '.join(words)}" if len(words) > 1 else f"only {words[0]}"


def _at_least(context: Context) -> str:
    # Dates come as text.
    return f"{context['ge']} or later" if isinstance(context["ge"], str) else f"at least {context['ge']}"


def _at_most(context: Context) -> str:
    return f"{context['le']} or earlier" if isinstance(context["le"], str) else f"at most {context['le']}"


def _pattern(context: Context) -> str:
    pattern = str(context["pattern"])
    return PATTERNS.get(pattern, f"a string of the form {pattern}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _noun(context: Context) -> str:
    # A secret has a length, too, but no type that pydantic would name.
    return "character" if context["field_type"] == "Value" else "item"


BUILT: dict[str, Callable[[Context], str]] = {
    "value_error": _value_error,
    "literal_error": _choice,
    "enum": _choice,
    "greater_than_equal": _at_least,
    "less_than_equal": _at_most,
    "greater_than": lambda context: f"more than {context['gt']}",
    "less_than": lambda context: f"less than {context['lt']}",
    "string_pattern_mismatch": _pattern,
    "string_too_short": lambda context: f"at least {_count(context['min_length'], 'character')}",
    "string_too_long": lambda context: f"at most {_count(context['max_length'], 'character')}",
    "too_short": lambda context: f"at least {_count(context['min_length'], _noun(context))}",
    "too_long": lambda context: f"at most {_count(context['max_length'], _noun(context))}",
}
