"""The options of a request, checked as the real API checks them: impossible ones raise `ApiError`.

Names and values are those of the installed SDK's types; what the types do not say stands here.
"""

import re
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from openai.types.responses.response_create_params import ResponseCreateParamsBase, ResponseCreateParamsStreaming
from openai.types.responses.tool_param import (
    ImageGeneration,
    ImageGenerationInputImageMask,
    ImageGenerationSvg,
    ImageGenerationSvgReasoning,
)

from offline.wire import ApiError, Json, as_object, as_objects, image_error


def _values(hint: object) -> tuple[str, ...]:
    """The strings of a Literal, however deep it stands in unions."""
    return tuple(value for part in get_args(hint) for value in ([part] if isinstance(part, str) else _values(part)))


REQUEST_KEYS = get_type_hints(ResponseCreateParamsBase).keys() | get_type_hints(ResponseCreateParamsStreaming).keys()
_TOOL = get_type_hints(ImageGeneration)
DEFAULT_IMAGE_MODEL = "gpt-image-2.6-sunburst"
OLD_IMAGE_MODELS = ("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest")
_SHUT_DOWN = ("gpt-image-1",)
IMAGE_MODELS = tuple(name for name in _values(_TOOL["model"]) if name not in _SHUT_DOWN)
_STANDARD_SIZES = tuple(size for size in _values(_TOOL["size"]) if size != "auto")
_MIN_PIXELS, _MAX_PIXELS, _MAX_EDGE, _MAX_RATIO = 655_360, 8_294_400, 3840, 3


@dataclass(frozen=True)
class ImageOptions:
    """One image tool's options; `size`, `quality`, `background` and `action` may still say auto."""

    model: str
    action: str
    background: str
    moderation: str
    output_format: str
    output_compression: int
    partial_images: int
    quality: str
    size: str
    frame_count: int
    frame_duration_ms: int
    mask: Json  # {file_id} or {image_url}, empty for none

    def echo(self, tool: Json) -> Json:
        """The tool as the response repeats it: defaults filled in; partials and mask are not repeated."""
        echoed = {key: value for key, value in tool.items() if key not in ("partial_images", "input_image_mask")}
        defaults = {"type": "image_generation", "background": "auto", "moderation": "auto", "n": 1}
        defaults |= {"output_compression": 100, "output_format": "png", "quality": "auto", "size": "auto"}
        return {**defaults, "model": self.model, **echoed}


def check_request(body: Json) -> None:
    """Raise for unknown or missing top-level parameters and for wrong types of the ones we lean on."""
    for key in body:
        if key not in REQUEST_KEYS:
            raise _unknown(key)
    if not isinstance(body.get("model"), str) or not body["model"]:
        message = "Missing required parameter: 'model'."
        raise ApiError(message, param="model", code="missing_required_parameter")
    if body.get("input") in (None, "", []) and not body.get("previous_response_id"):
        message = "One of 'input' or 'previous_response_id' or 'prompt' or 'conversation_id' must be provided."
        raise ApiError(message, code="missing_required_parameter")
    for key in ("background", "store", "stream", "parallel_tool_calls"):
        _typed(body.get(key), bool, key, "a boolean")
    _integer(body, "max_output_tokens", "", 16, 10**9, default=0)
    if body.get("previous_response_id") and body.get("conversation"):
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise ApiError(message, code="mutually_exclusive_parameters")


def check_tool_choice(choice: Any, tools: list[Json]) -> None:
    """Raise where `tool_choice` names no tool of this request."""
    if choice is None or choice in ("auto", "none", "required"):
        return
    if isinstance(choice, str):
        supported = "Supported values are: 'none', 'auto', and 'required'."
        raise ApiError(f"Invalid value: '{choice}'. {supported}", param="tool_choice", code="invalid_value")
    wanted = as_object(choice)
    kind, name = wanted.get("type"), wanted.get("name")
    for allowed in as_objects(wanted.get("tools")) if kind == "allowed_tools" else [wanted]:
        named = [tool for tool in tools if tool.get("type") == allowed.get("type")]
        if not named or (name and name not in [tool.get("name") for tool in named]):
            message = f"Tool choice '{name or allowed.get('type')}' not found in 'tools' parameter."
            raise ApiError(message, param="tool_choice")


def parse_image_tool(tool: Json, index: int) -> ImageOptions:
    """Check one `image_generation` tool, the `index`-th of the request."""
    where = f"tools[{index}]"
    for key in tool:
        if key not in _TOOL:
            raise _unknown(f"{where}.{key}")
    model = tool.get("model", DEFAULT_IMAGE_MODEL)
    if model not in IMAGE_MODELS:
        raise image_error(f"The model '{model}' does not exist.", param="model")
    old = model in OLD_IMAGE_MODELS
    # The newest models know more qualities, the oldest fewer formats.
    later = () if "-2.5-" in model or "-2.6-" in model else ("xhigh", "max")
    options = ImageOptions(
        model=model,
        action=_choice(tool, "action", "auto", where),
        background=_choice(tool, "background", "auto", where),
        moderation=_choice(tool, "moderation", "auto", where),
        output_format=_choice(tool, "output_format", "png", where, but=("gif", "svg") if old else ()),
        output_compression=_integer(tool, "output_compression", where, 0, 100, default=100),
        partial_images=_integer(tool, "partial_images", where, 0, 3, default=0),
        quality=_choice(tool, "quality", "auto", where, but=later),
        size=_size(tool.get("size", "auto"), old),
        frame_count=_integer(tool, "frame_count", where, 2, 16, default=9),
        frame_duration_ms=_integer(tool, "frame_duration_ms", where, 10, 65_530, default=200),
        mask=_mask(tool, where),
    )
    _choice(tool, "complexity", "medium", where)
    _check_fidelity(tool, model, where)
    _check_svg(tool, where)
    _check_together(tool, options)
    return options


def size_of(text: str) -> tuple[int, int]:
    """Width and height of a checked `WxH`."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def _check_together(tool: Json, options: ImageOptions) -> None:
    """What one option allows, another may forbid."""
    kind = options.output_format
    if options.background == "transparent" and kind not in ("png", "webp"):
        message = f"Transparent background is not supported for output format '{kind}'. Use 'png' or 'webp'."
        raise image_error(message, param="background")
    if options.partial_images and kind in ("gif", "svg"):
        raise image_error(f"Partial images are not supported for output format '{kind}'.", param="partial_images")
    if options.output_compression < 100 and kind not in ("jpeg", "webp"):
        message = f"Compression less than 100 is not supported for {kind.upper()} output format."
        raise image_error(message, param="output_compression")
    if options.mask and kind == "gif":
        raise image_error("A mask is not supported for output format 'gif'.", param="input_image_mask")
    for key in ("frame_count", "frame_duration_ms"):
        if key in tool and kind != "gif":
            raise image_error(f"'{key}' requires output format 'gif'.", param=key)


def _check_fidelity(tool: Json, model: str, where: str) -> None:
    if tool.get("input_fidelity") is None:
        return
    value = _choice(tool, "input_fidelity", "low", where)
    if model not in OLD_IMAGE_MODELS:
        message = f"The model '{model}' does not support the 'input_fidelity' parameter."
        raise image_error(message, param="input_fidelity")
    if model == "gpt-image-1-mini" and value == "high":
        raise image_error("The model 'gpt-image-1-mini' supports only low input fidelity.", param="input_fidelity")


def _check_svg(tool: Json, where: str) -> None:
    if "svg" not in tool:
        return
    svg = as_object(tool["svg"])
    for key in svg.keys() - get_type_hints(ImageGenerationSvg).keys():
        raise _unknown(f"{where}.svg.{key}")
    reasoning = as_object(svg.get("reasoning"))
    efforts = _values(get_type_hints(ImageGenerationSvgReasoning)["effort"])
    if reasoning and reasoning.get("effort", "medium") not in efforts:
        raise _unsupported(f"{where}.svg.reasoning.effort", reasoning["effort"], efforts)
    if tool.get("output_format") != "svg":
        raise image_error("'svg' requires output format 'svg'.", param="svg")


def _mask(tool: Json, where: str) -> Json:
    mask = as_object(tool.get("input_image_mask"))
    for key in mask.keys() - get_type_hints(ImageGenerationInputImageMask).keys():
        raise _unknown(f"{where}.input_image_mask.{key}")
    return mask


def _size(value: Any, old: bool) -> str:
    if value == "auto" or value in _STANDARD_SIZES:
        return value
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value) if isinstance(value, str) else None
    if match is None or old:
        message = f"Invalid size '{value}'. Supported sizes are {', '.join(_STANDARD_SIZES)}, and auto."
        raise image_error(message, param="size")
    width, height = int(match[1]), int(match[2])
    fault = None
    if width % 16 or height % 16:
        fault = "Width and height must both be divisible by 16."
    elif max(width, height) > _MAX_RATIO * min(width, height):
        fault = "The aspect ratio must be between 1:3 and 3:1."
    elif max(width, height) > _MAX_EDGE:
        fault = f"The longest edge must be at most {_MAX_EDGE} pixels."
    elif not _MIN_PIXELS <= width * height <= _MAX_PIXELS:
        fault = f"The image must have between {_MIN_PIXELS} and {_MAX_PIXELS} pixels."
    if fault:
        raise image_error(f"Invalid size '{value}'. {fault}", param="size")
    return f"{width}x{height}"


def _choice(tool: Json, key: str, default: str, where: str, *, but: tuple[str, ...] = ()) -> str:
    """The value of `key`, which is one of the SDK's values except `but`."""
    value = tool.get(key, default)
    allowed = tuple(name for name in _values(_TOOL[key]) if name not in but)
    if value not in allowed:
        raise _unsupported(f"{where}.{key}", value, allowed)
    return value


def _integer(tool: Json, key: str, where: str, low: int, high: int, *, default: int) -> int:
    value, name = tool.get(key), f"{where}.{key}".lstrip(".")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(value, name, "an integer")
    if value < low:
        message = f"Invalid '{name}': integer below minimum value. Expected a value >= {low}, but got {value} instead."
        raise ApiError(message, param=name, code="integer_below_min_value")
    if value > high:
        message = f"Invalid '{name}': integer above maximum value. Expected a value <= {high}, but got {value} instead."
        raise ApiError(message, param=name, code="integer_above_max_value")
    return value


def _typed(value: Any, kind: type, name: str, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise _wrong_type(value, name, wanted)


def _wrong_type(value: object, name: str, wanted: str) -> ApiError:
    got: dict[type, str] = {str: "a string", bool: "a boolean", int: "an integer", list: "an array", dict: "an object"}
    message = f"Invalid type for '{name}': expected {wanted}, but got {got.get(type(value), 'a decimal')} instead."
    return ApiError(message, param=name, code="invalid_type")


def _unsupported(name: str, value: object, allowed: tuple[str, ...]) -> ApiError:
    listed = ", ".join(f"'{name}'" for name in allowed[:-1])
    message = f"Invalid value: '{value}'. Supported values are: {listed}{',' * (len(allowed) > 2)} and '{allowed[-1]}'."
    return ApiError(message, param=name, code="invalid_value")


def _unknown(name: str) -> ApiError:
    return ApiError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
