"""Image options: every value, every pair that conflicts, and the three layers."""

from datetime import date
from itertools import product
from typing import Any

import pytest
from openai.types.responses.tool_param import ImageGeneration

from app.images.options import ALIASES, FORMATS, OPTION_NAMES, OptionError, check_mask, check_settings, resolve
from app.settings import Settings

TODAY = date(2026, 11, 20)
PLAIN = {"size": "1024x1024", "quality": "high", "output_format": "png", "background": "auto", "partial_images": 2}

# One valid value of each option, with the options that it needs.
EXAMPLES: dict[str, dict[str, Any]] = {
    "action": {"action": "edit"},
    "background": {"background": "transparent"},
    "complexity": {"complexity": "high"},
    "frame_count": {"frame_count": 4, "output_format": "gif"},
    "frame_duration_ms": {"frame_duration_ms": 120, "output_format": "gif"},
    "input_fidelity": {"input_fidelity": "high", "model": "gpt-image-1.5"},
    "model": {"model": "gpt-image-2"},
    "moderation": {"moderation": "low"},
    "output_compression": {"output_compression": 0, "output_format": "webp"},
    "output_format": {"output_format": "jpeg"},
    "partial_images": {"partial_images": 0},
    "quality": {"quality": "xhigh"},
    "size": {"size": "1536x864"},
    "svg": {"svg": {"model": "gpt-6.1-sol", "reasoning": {"effort": "low"}}, "output_format": "svg"},
}
# Values that only some formats accept -> those formats.
BOUND_TO_FORMATS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"background": "transparent"}, ("png", "webp")),
    ({"output_compression": 80}, ("jpeg", "webp")),
    ({"partial_images": 1}, ("png", "jpeg", "webp")),
    ({"frame_count": 9}, ("gif",)),
    ({"frame_duration_ms": 200}, ("gif",)),
    ({"svg": {}}, ("svg",)),
]
MATRIX = [(value, fmt, fmt in formats) for (value, formats), fmt in product(BOUND_TO_FORMATS, FORMATS)]
IMPOSSIBLE: list[tuple[str, list[Any]]] = [
    ("quality", ["ultra", "HIGH", 1]),
    ("output_format", ["jpg", "PNG", ["png"]]),
    ("format", ["bmp"]),
    ("background", ["white", False]),
    ("action", ["draw"]),
    ("moderation", ["none", "high"]),
    ("complexity", ["auto", "max"]),
    ("input_fidelity", ["medium"]),
    ("model", ["", "  ", "x" * 101, 2]),
    ("output_compression", [-1, 101, 80.0, "80", True]),
    ("compression", [101]),
    ("partial_images", [-1, 4, True, "1", 1.0]),
    ("frame_count", [0, 1, 17, True, "4"]),
    ("frame_duration_ms", [0, -10, True, 10.5]),
    (
        "svg",
        [
            "author",
            [],
            {"style": 1},
            {"model": ""},
            {"model": "x" * 101},
            {"reasoning": "low"},
            {"reasoning": {"effort": "huge"}},
        ],
    ),
]


def test_the_settings_alone_make_a_full_set_without_a_model() -> None:
    assert _resolve() == PLAIN


def test_every_option_of_the_sdk_is_known() -> None:
    sdk = set(ImageGeneration.__annotations__) - {"type", "input_image_mask"}
    assert set(OPTION_NAMES) == sdk | set(ALIASES)
    assert set(EXAMPLES) == sdk


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_spec_and_a_run_may_set_every_option(name: str) -> None:
    options = EXAMPLES[name]
    assert _resolve(spec=options)[name] == options[name]
    assert _resolve(run=options)[name] == options[name]


def test_the_documents_names_become_wire_names() -> None:
    options = _resolve(spec={"format": "jpeg", "compression": 80})
    assert (options["output_format"], options["output_compression"]) == ("jpeg", 80)
    assert not set(options) & set(ALIASES)


def test_one_option_under_both_names_is_rejected() -> None:
    assert _rejection(run={"format": "png", "output_format": "png"}).field == "output_format"


def test_an_unknown_option_is_rejected_with_the_known_ones() -> None:
    error = _rejection(spec={"colour": "red"})
    assert str(error).startswith("colour: ")
    assert error.allowed == ", ".join(OPTION_NAMES)


def test_none_counts_as_not_given() -> None:
    assert _resolve(spec=dict.fromkeys(OPTION_NAMES)) == PLAIN


@pytest.mark.parametrize("size", ["auto", "1024x1024", "1536x864", "3840x2160", "2160x3840", "1408x480", "3840x1280"])
def test_a_possible_size_is_accepted(size: str) -> None:
    assert _resolve(run={"size": size})["size"] == size


@pytest.mark.parametrize(
    "size",
    [
        *("", "big", "1000x1000", "1024x1025", "640x640", "3856x2160", "3840x2176", "3840x1264", "01024x1024"),
        *("1024X1024", "1024x1024 ", "1024x1024\n", "\u0661024x1024", "0x0", 1024, ["1024x1024"], True),
    ],
)
def test_an_impossible_size_is_rejected(size: object) -> None:
    assert "multiples of 16" in _rejection(run={"size": size}).allowed


@pytest.mark.parametrize(
    ("name", "values"),
    IMPOSSIBLE,
)
def test_an_impossible_value_is_rejected_under_the_name_it_was_given(name: str, values: list[object]) -> None:
    for value in values:
        assert _rejection(run={name: value}).field.startswith(name)
        assert _rejection(spec={name: value}).field.startswith(name)


@pytest.mark.parametrize("edge", [("output_compression", 0, 100), ("frame_count", 2, 16), ("partial_images", 0, 2)])
def test_the_bounds_themselves_are_accepted(edge: tuple[str, int, int]) -> None:
    name, *bounds = edge
    beside = {"output_compression": "webp", "frame_count": "gif"}.get(name, "png")
    assert [_resolve(run={name: bound, "format": beside})[name] for bound in bounds] == bounds


@pytest.mark.parametrize(("value", "fmt", "fits"), MATRIX)
def test_a_value_that_conflicts_with_the_format_of_its_layer_is_rejected(
    value: dict[str, Any], fmt: str, fits: bool
) -> None:
    (name,) = value
    for layer in ("spec", "run"):
        options = {layer: {**value, "format": fmt}}
        if fits:
            assert _resolve(**options)[name] == value[name]
        else:
            assert _rejection(**options).field == name


@pytest.mark.parametrize(("value", "fmt", "fits"), MATRIX)
def test_a_runs_format_drops_values_of_the_spec_that_conflict_with_it(
    value: dict[str, Any], fmt: str, fits: bool
) -> None:
    (name,) = value
    home = next(formats[0] for bound, formats in BOUND_TO_FORMATS if bound == value)
    options = _resolve(spec={**value, "format": home}, run={"format": fmt})
    assert options["output_format"] == fmt
    assert (options.get(name) == value[name]) is fits


@pytest.mark.parametrize(("value", "fmt", "fits"), MATRIX)
def test_a_value_above_its_formats_layer_is_rejected_where_it_does_not_fit(
    value: dict[str, Any], fmt: str, fits: bool
) -> None:
    (name,) = value
    if fits:
        assert _resolve(spec={"format": fmt}, run=value)[name] == value[name]
    else:
        error = _rejection(spec={"format": fmt}, run=value)
        assert error.field == name
        assert fmt in str(error)


def test_a_dropped_value_gives_way_to_the_next_layer() -> None:
    options = _resolve(
        spec={"format": "png", "background": "transparent"}, run={"format": "jpeg"}, image_default_background="opaque"
    )
    assert options["background"] == "opaque"


def test_conflicting_settings_are_dropped_not_rejected() -> None:
    assert "output_compression" not in _resolve(image_default_compression=70)
    assert _resolve(image_default_compression=70, run={"format": "webp"})["output_compression"] == 70
    jpeg = _resolve(image_default_format="jpeg", image_default_background="transparent")
    assert "background" not in jpeg


def test_the_run_goes_before_the_spec_before_the_settings() -> None:
    options = _resolve(spec={"quality": "low", "size": "auto"}, run={"quality": "max"})
    assert (options["quality"], options["size"], options["background"]) == ("max", "auto", "auto")


def test_partial_images_above_the_cap_are_rejected_naming_the_setting() -> None:
    for layer in ("spec", "run"):
        error = _rejection(**{layer: {"partial_images": 3}})
        assert "IMAGE_MAX_PARTIAL_IMAGES" in str(error)
        assert "0 to 2" in str(error)
    assert _resolve(run={"partial_images": 3}, image_max_partial_images=3)["partial_images"] == 3


@pytest.mark.parametrize(("fmt", "partials"), [("png", 1), ("jpeg", 1), ("webp", 1), ("gif", 0), ("svg", 0)])
def test_unset_partial_images_mean_the_cap_or_zero_for_formats_without_them(fmt: str, partials: int) -> None:
    assert _resolve(run={"format": fmt}, image_max_partial_images=1)["partial_images"] == partials


@pytest.mark.parametrize(
    ("fidelity", "model", "fits"),
    [
        ("high", "gpt-image-1.5", True),
        ("low", "gpt-image-1.5", True),
        ("low", "gpt-image-1-mini", True),
        ("high", "gpt-image-1-mini", False),
        ("high", "gpt-image-2", False),
        ("low", None, False),
    ],
)
def test_input_fidelity_needs_a_model_that_knows_it(fidelity: str, model: str | None, fits: bool) -> None:
    options = {"input_fidelity": fidelity, "model": model}
    if fits:
        assert _resolve(run=options)["input_fidelity"] == fidelity
        assert _resolve(run={"input_fidelity": fidelity}, image_model=model)["input_fidelity"] == fidelity
    else:
        assert _rejection(run=options).field == "input_fidelity"
        assert _rejection(run={"input_fidelity": fidelity}, image_model=model).field == "input_fidelity"


def test_a_runs_model_drops_the_specs_input_fidelity() -> None:
    spec = {"input_fidelity": "high", "model": "gpt-image-1.5"}
    assert "input_fidelity" not in _resolve(spec=spec, run={"model": "gpt-image-2"})


def test_a_model_is_rejected_from_its_shutdown_on() -> None:
    shutdown = date(2026, 12, 1)
    assert _resolve(run={"model": "gpt-image-1.5"})["model"] == "gpt-image-1.5"
    with pytest.raises(OptionError, match="was shut down on 2026-12-01"):
        resolve(_settings(), {}, {"model": "gpt-image-1.5"}, today=shutdown)
    with pytest.raises(OptionError, match="IMAGE_MODEL"):
        check_settings(_settings(image_model="gpt-image-1"), today=TODAY)


def test_a_setting_that_is_impossible_is_named() -> None:
    with pytest.raises(OptionError, match="IMAGE_DEFAULT_SIZE: '1000x1000'"):
        check_settings(_settings(image_default_size="1000x1000"))


def test_only_gif_accepts_no_mask() -> None:
    for fmt in FORMATS:
        if fmt == "gif":
            with pytest.raises(OptionError):
                check_mask(_resolve(run={"format": fmt}))
        else:
            check_mask(_resolve(run={"format": fmt}))


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(str(_rejection(run={"quality": "x" * 10_000}))) < 300


def _resolve(
    spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None, **settings: object
) -> dict[str, Any]:
    return resolve(_settings(**settings), spec or {}, run or {}, today=TODAY)


def _rejection(
    spec: dict[str, Any] | None = None, run: dict[str, Any] | None = None, **settings: object
) -> OptionError:
    with pytest.raises(OptionError) as caught:
        _resolve(spec, run, **settings)
    return caught.value


def _settings(**values: Any) -> Settings:
    return Settings.model_validate(values)
