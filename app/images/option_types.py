"""What the value of an image option may be: each type checks a value, and describes itself as JSON Schema."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

# Events hold it.
MAX_MODEL_CHARACTERS = 100

# What `str.strip` leaves something of: JavaScript counts U+FEFF as white space, and U+001C to U+001F and U+0085 not.
_NOT_BLANK = r"[^\s\x1C-\x1F\x85]|\uFEFF"
_SIZE = r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})"
_SIZE_RULE = (
    "auto or WIDTHxHEIGHT: both multiples of 16, no edge over 3840, "
    "a ratio from 1:3 to 3:1, 655360 to 8294400 pixels in all"
)


class OptionError(ValueError):
    """An option that cannot be used: its `field`, and as text what was `given` and what is `allowed`."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        text = repr(given)
        self.field = field
        self.given = text if len(text) <= 80 else f"{text[:77]}..."
        self.allowed = allowed
        super().__init__(f"{field}: {self.given} is not possible; allowed: {allowed}")


class OptionType(Protocol):
    def check(self, name: str, value: object) -> Any:
        """The value; raises OptionError, which calls the option `name`."""
        ...

    def schema(self) -> dict[str, Any]:
        """A new JSON Schema (2020-12) that accepts what `check` accepts; never less."""
        ...


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.values:
            raise OptionError(name, value, ", ".join(self.values))
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True)
class WholeNumber:
    """To JSON Schema 4.0 is a whole number as well; `check` rejects it."""

    lowest: int
    highest: int | None = None

    def check(self, name: str, value: object) -> int:
        # bool is a subclass of int.
        if isinstance(value, int) and not isinstance(value, bool) and self.lowest <= value <= (self.highest or value):
            return value
        bounds = f"of {self.lowest} or more" if self.highest is None else f"from {self.lowest} to {self.highest}"
        raise OptionError(name, value, f"a whole number {bounds}")

    def schema(self) -> dict[str, Any]:
        upper = {} if self.highest is None else {"maximum": self.highest}
        return {"type": "integer", "minimum": self.lowest, **upper}


@dataclass(frozen=True)
class ModelName:
    def check(self, name: str, value: object) -> str:
        # Postgres takes neither NUL nor half a surrogate pair.
        readable = isinstance(value, str) and value.isprintable() and value.strip()
        if not isinstance(value, str) or not readable or len(value) > MAX_MODEL_CHARACTERS:
            raise OptionError(name, value, f"the name of a model, {MAX_MODEL_CHARACTERS} characters at most")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": MAX_MODEL_CHARACTERS, "pattern": _NOT_BLANK}


@dataclass(frozen=True)
class Size:
    """JSON Schema cannot multiply: it knows the form of a size, and its description tells the rest."""

    def check(self, name: str, value: object) -> str:
        if value == "auto":
            return "auto"
        match = re.fullmatch(_SIZE, value) if isinstance(value, str) else None
        if match is None:
            raise OptionError(name, value, _SIZE_RULE)
        width, height = int(match[1]), int(match[2])
        short, long = sorted((width, height))
        multiples = width % 16 == 0 and height % 16 == 0
        if not multiples or long > 3840 or long > 3 * short or not 655_360 <= width * height <= 8_294_400:
            raise OptionError(name, value, _SIZE_RULE)
        return match[0]

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(auto|{_SIZE})$", "description": _SIZE_RULE}


@dataclass(frozen=True)
class Fields:
    """An object, each of whose fields may be absent; None counts as absent."""

    types: Mapping[str, OptionType]

    def check(self, name: str, value: object) -> dict[str, Any]:
        rule = f"an object with {' and '.join(self.types)}"
        if not isinstance(value, Mapping):
            raise OptionError(name, value, rule)
        fields = cast("Mapping[str, object]", value)
        for key in fields:
            if key not in self.types:
                raise OptionError(f"{name}.{key}", fields[key], rule)
        return {
            key: one.check(f"{name}.{key}", fields[key])
            for key, one in self.types.items()
            if fields.get(key) is not None
        }

    def schema(self) -> dict[str, Any]:
        properties = {key: one.schema() for key, one in self.types.items()}
        return {"type": "object", "properties": properties, "additionalProperties": False}
