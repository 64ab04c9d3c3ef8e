"""The JSON Schema of an agent's image options accepts what the validation accepts, for every pair of options.

Beyond that it accepts only what JSON Schema cannot rule out: EXCEPTIONS names all of it.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from itertools import combinations, product
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tries
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from pydantic import TypeAdapter

from app.images.option_schema import schema_of
from app.images.option_types import OptionError
from app.images.options import ALIASES, OPTION_NAMES, resolve
from app.images.schemas import ImageRequest
from app.settings import Settings

Json = dict[str, Any]

TODAY = date(2026, 11, 20)
NAMES = sorted(set(OPTION_NAMES) - set(ALIASES.values()))
# Name -> the spec's options and the settings that make an agent's defaults.
AGENTS: dict[str, tuple[Json, Json]] = {
    "nothing named": ({}, {}),
    "png by its spec": ({"format": "png", "background": "transparent", "partial_images": 1}, {}),
    "jpeg by its spec": ({"format": "jpeg", "compression": 80, "background": "opaque"}, {}),
    "jpeg by the settings": ({}, {"image_default_format": "jpeg", "image_default_compression": 70}),
    "webp": ({"output_format": "webp", "background": "transparent", "output_compression": 0}, {}),
    "gif": ({"format": "gif", "frame_count": 4, "frame_duration_ms": 90}, {"image_default_background": "transparent"}),
    "gif by the settings": ({"quality": "low"}, {"image_default_format": "gif"}),
    "svg": ({"format": "svg", "svg": {"model": "gpt-6.1-sol", "reasoning": {"effort": "low"}}}, {}),
    "a model with high fidelity": ({"model": "gpt-image-1.5", "input_fidelity": "high"}, {}),
    "a model with low fidelity": ({"input_fidelity": "low"}, {"image_model": "gpt-image-1-mini"}),
    "a model without fidelity": ({"model": "gpt-image-2"}, {"image_max_partial_images": 3}),
    "no previews": ({"size": "auto", "moderation": "low", "complexity": "high"}, {"image_max_partial_images": 0}),
}
# Of each option possible and impossible values; of numbers the bounds and what is next to them.
VALUES: dict[str, list[Any]] = {
    "action": ["generate", "edit", "auto", "draw", 1],
    "background": ["auto", "opaque", "transparent", "white", False],
    "complexity": ["low", "medium", "high", "max"],
    "compression": [0, 1, 100, -1, 101, 80.5, "80", True],
    "format": ["png", "jpeg", "webp", "gif", "svg", "jpg", "PNG", ["png"]],
    "frame_count": [2, 16, 1, 17, "4", False],
    "frame_duration_ms": [1, 100_000, 0, -10, 10.5],
    "input_fidelity": ["high", "low", "medium"],
    "model": ["gpt-image-1.5", "gpt-image-1-mini", "gpt-image-2", "x" * 100, "", "  ", "\t\n", "x" * 101, 2],
    "moderation": ["auto", "low", "high"],
    "partial_images": [0, 1, 2, 3, 4, -1, True, "1"],
    "quality": ["low", "medium", "high", "xhigh", "max", "auto", "ultra", "HIGH", 1],
    "size": ["auto", "1024x1024", "3840x1280", "big", "1024X1024", "1024x1024\n", "01024x1024", "10240x1024", 1024],
    "svg": [
        *({}, {"model": "gpt-6.1-sol"}, {"reasoning": {}}, {"reasoning": {"effort": "max"}}),
        *({"model": ""}, {"reasoning": {"effort": "huge"}}, {"reasoning": "low"}, {"style": 1}, "author", []),
    ],
}
# What JSON Schema accepts although `resolve` does not, and why.
EXCEPTIONS: dict[str, list[Json]] = {
    "it cannot multiply": [
        {"size": size} for size in ("1000x1000", "640x640", "3856x2160", "3840x1264", "3840x2176", "1x1", "9999x9999")
    ],
    "to it 4.0 is a whole number": [
        {"format": "webp", "compression": 80.0},
        {"partial_images": 1.0},
        {"format": "gif", "frame_count": 4.0},
        {"format": "gif", "frame_duration_ms": 120.0},
    ],
    "a day may pass before a client fetches it again": [{"model": "gpt-image-1"}],
}
WRONG_JSON = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
SIZES = st.from_regex(r"\A[1-9][0-9]{2,3}x[1-9][0-9]{2,3}\Z", alphabet="x0123456789")
MODELS = st.text(alphabet=" \t\x1c\x85\u3000\ufeffab", max_size=3)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_pair_of_values_is_accepted_by_both_or_by_neither(agent: str) -> None:
    settings, spec, validator = _agent(agent)
    disagreed: list[Json] = []
    tried = accepted = 0
    for first, second in combinations(NAMES, 2):
        for one, other in product([..., *VALUES[first]], [..., *VALUES[second]]):
            options = {name: value for name, value in ((first, one), (second, other)) if value is not ...}
            possible = _resolves(settings, spec, options)
            tried, accepted = tried + 1, accepted + possible
            if validator.is_valid(options) is not possible:
                disagreed.append(options)
    assert disagreed == []
    assert tried > 4000
    assert accepted > 500


# Threads of other tests' servers draw random numbers, too, while hypothesis looks whether a strategy does.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@pytest.mark.parametrize("agent", AGENTS)
@tries(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_options_are_accepted_by_both_or_by_neither(agent: str, data: st.DataObject) -> None:
    settings, spec, validator = _agent(agent)
    chosen = data.draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True))
    options: Json = {name: data.draw(_values(name), label=name) for name in chosen}
    options = data.draw(st.sampled_from([options] * 9 + [{**options, "colour": "red"}]))
    possible = _resolves(settings, spec, options)
    if any(_is_exception(name, value) for name, value in options.items()):
        assert not possible
    else:
        assert validator.is_valid(options) is possible, options


@pytest.mark.parametrize(("why", "options"), [(why, one) for why, all_of in EXCEPTIONS.items() for one in all_of])
def test_the_schema_is_looser_only_where_json_schema_has_no_words(why: str, options: Json) -> None:
    settings, spec, validator = _agent("nothing named")
    assert validator.is_valid(options), why
    assert not _resolves(settings, spec, options)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_defaults_are_what_a_run_gets_that_names_none(agent: str) -> None:
    settings, spec, _ = _agent(agent)
    properties = schema_of(settings, spec, today=TODAY)["properties"]
    told = {name: schema["default"] for name, schema in properties.items() if "default" in schema}
    assert {ALIASES.get(name, name): value for name, value in told.items()} == resolve(settings, spec, {}, today=TODAY)
    # Sent back, they change nothing.
    assert resolve(settings, spec, told, today=TODAY) == resolve(settings, spec, {}, today=TODAY)


def test_the_properties_are_the_public_names_and_no_other() -> None:
    schema = _schema("nothing named")
    assert sorted(schema["properties"]) == NAMES
    assert set(VALUES) == set(NAMES)
    assert schema["additionalProperties"] is False
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_schema_is_a_schema_and_a_default_fits_it() -> None:
    for agent in AGENTS:
        schema = _schema(agent)
        for one in (schema, *schema["properties"].values()):
            Draft202012Validator(json.loads(json.dumps(one)))
        assert all(Draft202012Validator(one).is_valid(one["default"]) for one in _with_default(schema))


def test_the_cap_on_previews_is_the_settings() -> None:
    for cap in range(4):
        settings = Settings.model_validate({"image_max_partial_images": cap})
        told = schema_of(settings, {}, today=TODAY)["properties"]["partial_images"]
        assert (told["minimum"], told["maximum"], told["default"]) == (0, cap, cap)


def test_the_size_is_told_in_words_where_a_pattern_cannot() -> None:
    assert "multiples of 16" in _schema("nothing named")["properties"]["size"]["description"]


def test_a_models_name_is_blank_to_both_or_to_neither() -> None:
    settings, spec, validator = _agent("nothing named")
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x10000))):
        assert validator.is_valid({"model": character}) is bool(character.strip()), hex(ord(character))
    assert not _resolves(settings, spec, {"model": "\x1c"})


def test_a_null_counts_as_not_named_and_is_not_in_the_schema() -> None:
    """A form leaves out what is not chosen."""
    for name in NAMES:
        settings, spec, validator = _agent("nothing named")
        assert resolve(settings, spec, {name: None}, today=TODAY) == resolve(settings, spec, {}, today=TODAY)
        assert not validator.is_valid({name: None})


def test_one_agents_schema_shares_nothing_with_anothers() -> None:
    first = _schema("nothing named")
    first["properties"]["quality"]["enum"].append("ultra")
    first["properties"]["svg"]["properties"]["reasoning"]["properties"].clear()
    assert _schema("nothing named") != first
    assert "ultra" not in _schema("png by its spec")["properties"]["quality"]["enum"]


def test_the_openapi_document_tells_the_same_values() -> None:
    """The types of app/images/schemas.py are written beside the table, as type checkers read no table."""
    document = TypeAdapter(ImageRequest).json_schema()
    inlined: Json = _inlined(document, document)
    schema = _schema("a model without fidelity")["properties"]
    assert set(inlined["properties"]) == set(OPTION_NAMES)
    for name, told in inlined["properties"].items():
        ours = schema[next((public for public, wire in ALIASES.items() if wire == name), name)]
        assert _bare(told) == _bare(ours), name


@cache
def _agent(name: str) -> tuple[Settings, Mapping[str, Any], Draft202012Validator]:
    spec, settings = AGENTS[name]
    return Settings.model_validate(settings), spec, Draft202012Validator(_schema(name))


def _schema(agent: str) -> Json:
    spec, settings = AGENTS[agent]
    return schema_of(Settings.model_validate(settings), spec, today=TODAY)


def _with_default(schema: Json) -> list[Json]:
    return [one for one in schema["properties"].values() if "default" in one]


def _resolves(settings: Settings, spec: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    try:
        resolve(settings, spec, options, today=TODAY)
    except OptionError:
        return False
    return True


@cache
def _values(name: str) -> st.SearchStrategy[Any]:
    """Mostly possible ones: with one that is impossible, the other options no longer matter."""
    beside = [{}, {"format": "webp"}, {"format": "gif"}, {"format": "svg"}, {"model": "gpt-image-1.5"}]
    settings = _agent("a model without fidelity")[0]
    possible = [one for one in VALUES[name] if any(_resolves(settings, {}, {**other, name: one}) for other in beside)]
    anything = st.sampled_from(VALUES[name]) | WRONG_JSON
    anything |= {"size": SIZES, "model": MODELS}.get(name, st.nothing())
    return st.integers(0, 5).flatmap(lambda chance: st.sampled_from(possible) if chance else anything)


def _is_exception(name: str, value: object) -> bool:
    """Whether the value is one that EXCEPTIONS is about."""
    if (
        name == "size"
        and isinstance(value, str)
        and (found := re.fullmatch("([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", value))
    ):
        short, long = sorted((int(found[1]), int(found[2])))
        return bool(short % 16 or long % 16) or long > min(3840, 3 * short) or not 655_360 <= short * long <= 8_294_400
    numbers = ("compression", "partial_images", "frame_count", "frame_duration_ms")
    return name in numbers and isinstance(value, float) and value.is_integer()


def _inlined(part: Any, document: Json) -> Any:
    if isinstance(part, list):
        return [_inlined(one, document) for one in cast(list[Any], part)]
    if not isinstance(part, dict):
        return part
    fields = cast(Json, part)
    if "$ref" in fields:
        return _inlined(document["$defs"][fields["$ref"].rpartition("/")[2]], document)
    return {key: _inlined(value, document) for key, value in fields.items() if key != "$defs"}


def _bare(part: Any) -> Any:
    """Without names, words, defaults and patterns, and that TypedDicts let pass what they do not know."""
    if not isinstance(part, dict):
        return part
    words = ("title", "description", "default", "pattern", "additionalProperties")
    fields = cast(Json, part)
    return {key: _bare(value) for key, value in fields.items() if key not in words or isinstance(value, dict)}
