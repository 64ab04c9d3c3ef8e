"""What a response reports of the tokens that it took."""

from typing import Any, cast

from openai.types.responses import Response


def usage_of(response: Response) -> dict[str, int]:
    """Tokens by kind; empty kinds are 0. Image tokens are not a part of `response.usage`."""
    tokens = {"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0}
    if usage := response.usage:
        tokens = {
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.input_tokens_details.cached_tokens or 0,
            "output_tokens": usage.output_tokens,
        }
    tools = cast(dict[str, Any], response.model_dump(include={"tool_usage"}).get("tool_usage") or {})
    image = cast(dict[str, Any], tools.get("image_gen") or {})
    return tokens | {f"image_{name}": int(image.get(name) or 0) for name in ("input_tokens", "output_tokens")}
