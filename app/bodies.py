"""What every JSON body of a request has in common."""

from typing import Annotated, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_FIELDS = 100


class Body(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_countless_fields(cls, given: object) -> object:
        # Each unknown field would become a fault of its own: 80,000 keep the event loop busy for 0.2 s.
        if isinstance(given, dict) and len(cast(dict[object, object], given)) > MAX_FIELDS:
            raise ValueError(f"send {MAX_FIELDS} fields at most")
        return cast(object, given)


def not_blank(text: str) -> str:
    """For `AfterValidator(not_blank)`: at least one character that is not white space."""
    if not text.strip():
        raise ValueError("write at least one character that is not white space")
    return storable(text)


def storable(text: str) -> str:
    """For `AfterValidator(storable)`: nothing that Postgres keeps out of a text."""
    if "\0" in text:
        raise ValueError("leave out the character U+0000")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(not_blank)]


def example(fields: dict[str, JsonValue]) -> ConfigDict:
    """For `model_config` of a body: one that is accepted."""
    return ConfigDict(json_schema_extra={"examples": [fields]})
