"""The image tool's options of one agent as JSON Schema (2020-12), for a front end that draws a form of them."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from app.images.option_types import Choice
from app.images.options import ALIASES, DEPENDENCIES, OPTIONS, Dependency, resolve
from app.settings import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PUBLIC_NAMES = {wire: public for public, wire in ALIASES.items()}


def schema_of(settings: Settings, spec_options: Mapping[str, object], *, today: date | None = None) -> dict[str, Any]:
    """What a run may set in `image`, under the public names and without nulls; raises OptionError for the spec.

    It accepts all that `resolve` accepts, and more only where JSON Schema has no words for a rule: the arithmetic of a
    size, the day on which a model is shut down, 4.0 in place of 4. `default` is what a run gets where it names none; an
    option without one is left to the provider.
    """
    defaults = resolve(settings, spec_options, {}, today=today)
    properties = {_public(name): one.schema() for name, one in OPTIONS.items()}
    properties["partial_images"]["maximum"] = settings.image_max_partial_images
    for name, value in defaults.items():
        properties[_public(name)]["default"] = value
    return {
        "$schema": _DIALECT,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "allOf": [_rule(one, defaults.get(one.decider)) for one in DEPENDENCIES],
    }


def _rule(dependency: Dependency, default: object) -> dict[str, Any]:
    """Only the free values, unless the decider's value is accepted; where a run names none, its `default` decides."""
    decider, decider_type = _public(dependency.decider), OPTIONS[dependency.decider]
    accepted = list(dependency.accepted)
    if isinstance(decider_type, Choice):
        others: dict[str, Any] = {"enum": [value for value in decider_type.values if value not in accepted]}
    else:
        others = {"not": {"enum": accepted}}
    # To `properties`, an absent decider is like one of the others.
    named = {"required": [decider]} if default in accepted else {}
    left = {"enum": list(dependency.free)} if dependency.free else False
    return {
        "if": {"properties": {decider: others}, **named},
        "then": {"properties": {_public(dependency.option): left}},
    }


def _public(name: str) -> str:
    return _PUBLIC_NAMES.get(name, name)
