"""Which models there are: every one but NO_SUCH_MODEL."""

from offline.wire import ApiError, Json

NO_SUCH_MODEL = "no-such-model"


def describe_model(model: str) -> Json:
    check_model(model)
    return {"id": model, "object": "model", "created": 0, "owned_by": "offline"}


def check_model(model: str) -> None:
    if model == NO_SUCH_MODEL:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise ApiError(message, status=404, param="model", code="model_not_found")
