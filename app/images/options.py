"""The image tool's options: from settings, specs and runs to the one set that the provider accepts.

Wire names follow the SDK's `types/responses/tool_param.py`, class ImageGeneration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from app.images import deprecations
from app.images.option_types import Choice, Fields, ModelName, OptionError, OptionType, Size, WholeNumber
from app.settings import Settings

FORMATS = ("png", "jpeg", "webp", "gif", "svg")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
ALIASES = {"format": "output_format", "compression": "output_compression"}
PARTIALS_CAP = "IMAGE_MAX_PARTIAL_IMAGES"

# Wire name -> what its value may be.
OPTIONS: dict[str, OptionType] = {
    "action": Choice(("generate", "edit", "auto")),
    "background": Choice(("auto", "opaque", "transparent")),
    "complexity": Choice(("low", "medium", "high")),
    "frame_count": WholeNumber(2, 16),
    "frame_duration_ms": WholeNumber(1),
    "input_fidelity": Choice(("high", "low")),
    "model": ModelName(),
    "moderation": Choice(("auto", "low")),
    "output_compression": WholeNumber(0, 100),
    "output_format": Choice(FORMATS),
    "partial_images": WholeNumber(0, 3),
    "quality": Choice(("low", "medium", "high", "xhigh", "max", "auto")),
    "size": Size(),
    # The model that writes the SVG.
    "svg": Fields({"model": ModelName(), "reasoning": Fields({"effort": Choice(EFFORTS)})}),
}
# The names that specs and runs may use.
OPTION_NAMES = tuple(sorted({*OPTIONS, *ALIASES}))


@dataclass(frozen=True)
class Dependency:
    """Values of `option`, but for the `free` ones, need one of the `accepted` values of `decider`."""

    option: str
    decider: str
    accepted: tuple[str, ...]
    free: tuple[object, ...] = ()

    def rule(self, value: object, chosen: object) -> str:
        choices = " or ".join(self.accepted)
        if self.decider == "model":
            return f"{value} only with the model {choices}"
        return f"only with the format {choices}, and the format is {chosen}"


DEPENDENCIES = (
    Dependency("background", "output_format", ("png", "webp"), free=("auto", "opaque")),
    Dependency("output_compression", "output_format", ("jpeg", "webp")),
    Dependency("partial_images", "output_format", ("png", "jpeg", "webp"), free=(0,)),
    Dependency("frame_count", "output_format", ("gif",)),
    Dependency("frame_duration_ms", "output_format", ("gif",)),
    Dependency("svg", "output_format", ("svg",)),
    Dependency("input_fidelity", "model", ("gpt-image-1.5",), free=("low",)),
    Dependency("input_fidelity", "model", ("gpt-image-1.5", "gpt-image-1-mini"), free=("high",)),
)

# Option of the settings layer -> its setting.
_SETTING_NAMES = {
    "size": "IMAGE_DEFAULT_SIZE",
    "quality": "IMAGE_DEFAULT_QUALITY",
    "output_format": "IMAGE_DEFAULT_FORMAT",
    "background": "IMAGE_DEFAULT_BACKGROUND",
    "output_compression": "IMAGE_DEFAULT_COMPRESSION",
    "model": "IMAGE_MODEL",
}


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
    cap = settings.image_max_partial_images
    chosen.setdefault("partial_images", 0 if _conflict("partial_images", cap, [chosen]) else cap)
    return chosen


def check_layer(options: Mapping[str, object], *, settings: Settings, today: date | None = None) -> dict[str, Any]:
    """One layer's options under their wire names; raises OptionError for impossible values and pairs of values.

    None counts as not given.
    """
    layer: dict[str, Any] = {}
    for given_name, value in options.items():
        name = ALIASES.get(given_name, given_name)
        if name not in OPTIONS:
            raise OptionError(given_name, value, ", ".join(OPTION_NAMES))
        if value is None:
            continue
        if name in layer:
            raise OptionError(given_name, value, f"either {given_name} or its other name, not both")
        layer[name] = OPTIONS[name].check(given_name, value)
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
    layer = {
        name: OPTIONS[name].check(_SETTING_NAMES[name], value) for name, value in values.items() if value is not None
    }
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
    for one in DEPENDENCIES:
        if one.option == name and value not in one.free:
            chosen = _first(one.decider, layers)
            if chosen not in one.accepted:
                return one.decider, one.rule(value, chosen)
    return None


def _first(name: str, layers: Sequence[Mapping[str, Any]]) -> object:
    return next((layer[name] for layer in layers if name in layer), None)


def _depth_of(name: str, layers: Sequence[Mapping[str, Any]]) -> int:
    """The index of the layer that chose `name`; the number of layers if none did."""
    return next((depth for depth, layer in enumerate(layers) if name in layer), len(layers))


def _name_given(name: str, options: Mapping[str, object]) -> str:
    if options.get(name) is not None:
        return name
    return next((alias for alias, wire in ALIASES.items() if wire == name and alias in options), name)
