"""The options of a request, checked as the real API checks them: impossible ones raise `Refused`.

Names follow the SDK's `types/responses/tool_param.py` (class ImageGeneration) and `response_create_params.py`.
"""

import re
from dataclasses import dataclass
from typing import Any

from offline.wire import Json, Refused, as_object, as_objects, image_error, word_set

REQUEST_KEYS = word_set(
    "access_programs background background_options context_management conversation image include input instructions "
    "max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt "
    "prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store "
    "stream stream_options temperature text tool_choice tools top_logprobs top_p truncation user"
)
IMAGE_TOOL_KEYS = word_set(
    "type action background complexity frame_count frame_duration_ms input_fidelity input_image_mask model moderation "
    "output_compression output_format partial_images quality size svg"
)
DEFAULT_IMAGE_MODEL = "gpt-image-2.6-sunburst"
OLD_IMAGE_MODELS = ("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest")
IMAGE_MODELS = (
    "gpt-image-2",
    "gpt-image-2-2026-04-21",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-sunburst-2026-09-08",
    "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.6-sunburst",
    "gpt-image-2.6-flare",
    *OLD_IMAGE_MODELS,
)
_STANDARD_SIZES = ("1024x1024", "1024x1536", "1536x1024")
_MIN_PIXELS, _MAX_PIXELS, _MAX_EDGE, _MAX_RATIO = 655_360, 8_294_400, 3840, 3
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


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
        """The tool as the response repeats it: defaults filled in; previews and mask are not repeated."""
        told = {key: value for key, value in tool.items() if key not in ("partial_images", "input_image_mask")}
        defaults = {"type": "image_generation", "background": "auto", "moderation": "auto", "n": 1}
        defaults |= {"output_compression": 100, "output_format": "png", "quality": "auto", "size": "auto"}
        return {**defaults, "model": self.model, **told}


def check_request(body: Json) -> None:
    """Raise for unknown or missing top-level parameters and for wrong types of the ones we lean on."""
    for key in body:
        if key not in REQUEST_KEYS:
            raise _unknown(key)
    if not isinstance(body.get("model"), str) or not body["model"]:
        message = "Missing required parameter: 'model'."
        raise Refused(message, param="model", code="missing_required_parameter")
    if body.get("input") in (None, "", []) and not body.get("previous_response_id"):
        message = "One of 'input' or 'previous_response_id' or 'prompt' or 'conversation_id' must be provided."
        raise Refused(message, code="missing_required_parameter")
    for key in ("background", "store", "stream", "parallel_tool_calls"):
        _typed(body.get(key), bool, key, "a boolean")
    _integer(body, "max_output_tokens", "", 16, 10**9, default=0)
    if body.get("previous_response_id") and body.get("conversation"):
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise Refused(message, code="mutually_exclusive_parameters")


def check_tool_choice(choice: Any, tools: list[Json]) -> None:
    """Raise where `tool_choice` names no tool of this request."""
    if choice is None or choice in ("auto", "none", "required"):
        return
    if isinstance(choice, str):
        supported = "Supported values are: 'none', 'auto', and 'required'."
        raise Refused(f"Invalid value: '{choice}'. {supported}", param="tool_choice", code="invalid_value")
    wanted = as_object(choice)
    kind, name = wanted.get("type"), wanted.get("name")
    for allowed in as_objects(wanted.get("tools")) if kind == "allowed_tools" else [wanted]:
        named = [tool for tool in tools if tool.get("type") == allowed.get("type")]
        if not named or (name and name not in [tool.get("name") for tool in named]):
            message = f"Tool choice '{name or allowed.get('type')}' not found in 'tools' parameter."
            raise Refused(message, param="tool_choice")


def parse_image_tool(tool: Json, index: int) -> ImageOptions:
    """Check one `image_generation` tool, the `index`-th of the request."""
    where = f"tools[{index}]"
    for key in tool:
        if key not in IMAGE_TOOL_KEYS:
            raise _unknown(f"{where}.{key}")
    model = tool.get("model", DEFAULT_IMAGE_MODEL)
    if model not in IMAGE_MODELS:
        raise image_error(f"The model '{model}' does not exist.", param="model")
    old = model in OLD_IMAGE_MODELS
    qualities = ("low", "medium", "high", "auto")
    newest = ("low", "medium", "high", "xhigh", "max", "auto")
    formats = ("png", "webp", "jpeg")
    options = ImageOptions(
        model=model,
        action=_choice(tool, "action", ("generate", "edit", "auto"), "auto", where),
        background=_choice(tool, "background", ("transparent", "opaque", "auto"), "auto", where),
        moderation=_choice(tool, "moderation", ("auto", "low"), "auto", where),
        output_format=_choice(tool, "output_format", formats if old else (*formats, "gif", "svg"), "png", where),
        output_compression=_integer(tool, "output_compression", where, 0, 100, default=100),
        partial_images=_integer(tool, "partial_images", where, 0, 3, default=0),
        quality=_choice(tool, "quality", newest if "-2.5-" in model or "-2.6-" in model else qualities, "auto", where),
        size=_size(tool.get("size", "auto"), old),
        frame_count=_integer(tool, "frame_count", where, 2, 16, default=9),
        frame_duration_ms=_integer(tool, "frame_duration_ms", where, 10, 65_530, default=200),
        mask=_mask(tool, where),
    )
    _choice(tool, "complexity", ("low", "medium", "high"), "medium", where)
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
    value = _choice(tool, "input_fidelity", ("high", "low"), "low", where)
    if model not in OLD_IMAGE_MODELS:
        message = f"The model '{model}' does not support the 'input_fidelity' parameter."
        raise image_error(message, param="input_fidelity")
    if model == "gpt-image-1-mini" and value == "high":
        raise image_error("The model 'gpt-image-1-mini' supports only low input fidelity.", param="input_fidelity")


def _check_svg(tool: Json, where: str) -> None:
    if "svg" not in tool:
        return
    svg = as_object(tool["svg"])
    for key in svg.keys() - {"model", "reasoning"}:
        raise _unknown(f"{where}.svg.{key}")
    if svg.get("reasoning"):
        _choice(as_object(svg["reasoning"]), "effort", _EFFORTS, "medium", f"{where}.svg.reasoning")
    if tool.get("output_format") != "svg":
        raise image_error("'svg' requires output format 'svg'.", param="svg")


def _mask(tool: Json, where: str) -> Json:
    mask = as_object(tool.get("input_image_mask"))
    for key in mask.keys() - {"file_id", "image_url"}:
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


def _choice(tool: Json, key: str, allowed: tuple[str, ...], default: str, where: str) -> str:
    value = tool.get(key, default)
    if value in allowed:
        return value
    listed = ", ".join(f"'{name}'" for name in allowed[:-1])
    message = f"Invalid value: '{value}'. Supported values are: {listed}{',' * (len(allowed) > 2)} and '{allowed[-1]}'."
    raise Refused(message, param=f"{where}.{key}", code="invalid_value")


def _integer(tool: Json, key: str, where: str, low: int, high: int, *, default: int) -> int:
    value, name = tool.get(key), f"{where}.{key}".lstrip(".")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(value, name, "an integer")
    if value < low:
        message = f"Invalid '{name}': integer below minimum value. Expected a value >= {low}, but got {value} instead."
        raise Refused(message, param=name, code="integer_below_min_value")
    if value > high:
        message = f"Invalid '{name}': integer above maximum value. Expected a value <= {high}, but got {value} instead."
        raise Refused(message, param=name, code="integer_above_max_value")
    return value


def _typed(value: Any, kind: type, name: str, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise _wrong_type(value, name, wanted)


def _wrong_type(value: object, name: str, wanted: str) -> Refused:
    got: dict[type, str] = {str: "a string", bool: "a boolean", int: "an integer", list: "an array", dict: "an object"}
    message = f"Invalid type for '{name}': expected {wanted}, but got {got.get(type(value), 'a decimal')} instead."
    return Refused(message, param=name, code="invalid_type")


def _unknown(name: str) -> Refused:
    return Refused(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
