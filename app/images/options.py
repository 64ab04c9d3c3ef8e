"""The image tool's options: from settings, specs and runs to the one set that the provider accepts.

Wire names follow the SDK's `types/responses/tool_param.py`, class ImageGeneration.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, cast

from app.images import deprecations
from app.settings import Settings

FORMATS = ("png", "jpeg", "webp", "gif", "svg")
QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
ALIASES = {"format": "output_format", "compression": "output_compression"}
PARTIALS_CAP = "IMAGE_MAX_PARTIAL_IMAGES"
# Events hold it.
MAX_MODEL_CHARACTERS = 100

_SIZE_RULE = (
    "auto or WIDTHxHEIGHT: both multiples of 16, no edge over 3840, "
    "a ratio from 1:3 to 3:1, 655360 to 8294400 pixels in all"
)
# Option -> the formats that accept it.
_FORMATS_ACCEPTING = {
    "background": ("png", "webp"),
    "output_compression": ("jpeg", "webp"),
    "partial_images": ("png", "jpeg", "webp"),
    "frame_count": ("gif",),
    "frame_duration_ms": ("gif",),
    "svg": ("svg",),
}
_FITS_EVERY_FORMAT = (("background", "auto"), ("background", "opaque"), ("partial_images", 0))
_MODELS_ACCEPTING_FIDELITY = {"high": ("gpt-image-1.5",), "low": ("gpt-image-1.5", "gpt-image-1-mini")}

# Option of the settings layer -> its setting.
_SETTING_NAMES = {
    "size": "IMAGE_DEFAULT_SIZE",
    "quality": "IMAGE_DEFAULT_QUALITY",
    "output_format": "IMAGE_DEFAULT_FORMAT",
    "background": "IMAGE_DEFAULT_BACKGROUND",
    "output_compression": "IMAGE_DEFAULT_COMPRESSION",
    "model": "IMAGE_MODEL",
}


class OptionError(ValueError):
    """An option that cannot be used: its `field`, and as text what was `given` and what is `allowed`."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        text = repr(given)
        self.field = field
        self.given = text if len(text) <= 80 else f"{text[:77]}..."
        self.allowed = allowed
        super().__init__(f"{field}: {self.given} is not possible; allowed: {allowed}")


def resolve(
    settings: Settings,
    spec_options: Mapping[str, object],
    run_options: Mapping[str, object],
    *,
    today: date | None = None,
) -> dict[str, Any]:
    """The tool's wire options without `type`: run over spec over settings; raises OptionError.

    A value of a lower layer that the chosen format or model does not accept is dropped for the next layer's.
    """
    layers = [
        check_layer(run_options, settings=settings, today=today),
        check_layer(spec_options, settings=settings, today=today),
        check_settings(settings, today=today),
    ]
    chosen: dict[str, Any] = {}
    for depth, layer in enumerate(layers):
        for name, value in layer.items():
            conflict = _conflict(name, value, layers)
            if conflict is None:
                chosen.setdefault(name, value)
            elif depth < len(layers) - 1 and depth <= _depth_of(conflict[0], layers):
                given_name = _name_given(name, (run_options, spec_options)[depth])
                raise OptionError(given_name, value, conflict[1])
    accepts_partials = chosen["output_format"] in _FORMATS_ACCEPTING["partial_images"]
    chosen.setdefault("partial_images", settings.image_max_partial_images if accepts_partials else 0)
    return chosen


def check_layer(options: Mapping[str, object], *, settings: Settings, today: date | None = None) -> dict[str, Any]:
    """One layer's options under their wire names; raises OptionError for impossible values and pairs of values.

    None counts as not given.
    """
    layer: dict[str, Any] = {}
    for given_name, value in options.items():
        name = ALIASES.get(given_name, given_name)
        if name not in _CHECKS:
            raise OptionError(given_name, value, ", ".join(OPTION_NAMES))
        if value is None:
            continue
        if name in layer:
            raise OptionError(given_name, value, f"either {given_name} or its other name, not both")
        layer[name] = _CHECKS[name](given_name, value)
    _check_caps(layer, settings, today)
    for name, value in layer.items():
        conflict = _conflict(name, value, [layer])
        if conflict and conflict[0] in layer:
            raise OptionError(_name_given(name, options), value, conflict[1])
    return layer


def check_settings(settings: Settings, *, today: date | None = None) -> dict[str, Any]:
    """The settings' layer under wire names; its OptionError names the setting."""
    values: dict[str, object] = {
        "size": settings.image_default_size,
        "quality": settings.image_default_quality,
        "output_format": settings.image_default_format,
        "background": settings.image_default_background,
        "output_compression": settings.image_default_compression,
        "model": settings.image_model,
    }
    layer = {name: _CHECKS[name](_SETTING_NAMES[name], value) for name, value in values.items() if value is not None}
    if "model" in layer:
        _check_served(_SETTING_NAMES["model"], layer["model"], today)
    return layer


def check_mask(options: Mapping[str, Any]) -> None:
    """Raise OptionError if the resolved options exclude a mask."""
    if options["output_format"] == "gif":
        raise OptionError("mask", "a mask", "a mask with every format but gif")


def _check_caps(layer: Mapping[str, Any], settings: Settings, today: date | None) -> None:
    partials = layer.get("partial_images", 0)
    if partials > settings.image_max_partial_images:
        cap = settings.image_max_partial_images
        raise OptionError("partial_images", partials, f"0 to {cap}, the cap that {PARTIALS_CAP} sets")
    if "model" in layer:
        _check_served("model", layer["model"], today)


def _check_served(field: str, model: str, today: date | None) -> None:
    day = today or datetime.now(UTC).date()
    if deprecations.is_shut_down(model, day):
        raise OptionError(field, model, f"a model that is still served ({deprecations.warning(model, day)})")


def _conflict(name: str, value: object, layers: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The option that excludes `value`, and what would be allowed; None without a conflict."""
    if name == "input_fidelity":
        models = _MODELS_ACCEPTING_FIDELITY[str(value)]
        if _first("model", layers) in models:
            return None
        return "model", f"{value} only with the model {' or '.join(models)}"
    if name not in _FORMATS_ACCEPTING or (name, value) in _FITS_EVERY_FORMAT:
        return None
    formats, chosen = _FORMATS_ACCEPTING[name], _first("output_format", layers)
    if chosen in formats:
        return None
    return "output_format", f"only with the format {' or '.join(formats)}, and the format is {chosen}"


def _first(name: str, layers: Sequence[Mapping[str, Any]]) -> object:
    return next((layer[name] for layer in layers if name in layer), None)


def _depth_of(name: str, layers: Sequence[Mapping[str, Any]]) -> int:
    """The index of the layer that chose `name`; the number of layers if none did."""
    return next((depth for depth, layer in enumerate(layers) if name in layer), len(layers))


def _name_given(name: str, options: Mapping[str, object]) -> str:
    if options.get(name) is not None:
        return name
    return next((alias for alias, wire in ALIASES.items() if wire == name and alias in options), name)


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(name, value, ", ".join(choices))
        return value

    return check


def _number(lowest: int, highest: int | None) -> Callable[[str, object], int]:
    def check(name: str, value: object) -> int:
        # bool is a subclass of int.
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= (highest or value):
            return value
        bounds = f"of {lowest} or more" if highest is None else f"from {lowest} to {highest}"
        raise OptionError(name, value, f"a whole number {bounds}")

    return check


def _model(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_MODEL_CHARACTERS:
        raise OptionError(name, value, f"the name of a model, {MAX_MODEL_CHARACTERS} characters at most")
    return value


def _size(name: str, value: object) -> str:
    if value == "auto":
        return "auto"
    match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", value) if isinstance(value, str) else None
    if match is None:
        raise OptionError(name, value, _SIZE_RULE)
    width, height = int(match[1]), int(match[2])
    short, long = sorted((width, height))
    multiples = width % 16 == 0 and height % 16 == 0
    if not multiples or long > 3840 or long > 3 * short or not 655_360 <= width * height <= 8_294_400:
        raise OptionError(name, value, _SIZE_RULE)
    return match[0]


def _svg(name: str, value: object) -> dict[str, Any]:
    """`{model?, reasoning?: {effort?}}`: the model that writes the SVG."""
    svg = _fields(name, value, ("model", "reasoning"))
    checked: dict[str, Any] = {}
    if svg.get("model") is not None:
        checked["model"] = _model(f"{name}.model", svg["model"])
    if svg.get("reasoning") is not None:
        reasoning = _fields(f"{name}.reasoning", svg["reasoning"], ("effort",))
        efforts = _one_of(*EFFORTS)
        checked["reasoning"] = {
            key: efforts(f"{name}.reasoning.{key}", effort) for key, effort in reasoning.items() if effort is not None
        }
    return checked


def _fields(name: str, value: object, allowed: Sequence[str]) -> Mapping[str, object]:
    rule = f"an object with {' and '.join(allowed)}"
    if not isinstance(value, Mapping):
        raise OptionError(name, value, rule)
    fields = cast("Mapping[str, object]", value)
    for key in fields:
        if key not in allowed:
            raise OptionError(f"{name}.{key}", fields[key], rule)
    return fields


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "action": _one_of("generate", "edit", "auto"),
    "background": _one_of("auto", "opaque", "transparent"),
    "complexity": _one_of("low", "medium", "high"),
    "frame_count": _number(2, 16),
    "frame_duration_ms": _number(1, None),
    "input_fidelity": _one_of("high", "low"),
    "model": _model,
    "moderation": _one_of("auto", "low"),
    "output_compression": _number(0, 100),
    "output_format": _one_of(*FORMATS),
    "partial_images": _number(0, 3),
    "quality": _one_of(*QUALITIES),
    "size": _size,
    "svg": _svg,
}
# The names that specs and runs may use.
OPTION_NAMES = tuple(sorted({*_CHECKS, *ALIASES}))
