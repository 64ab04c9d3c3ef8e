"""What the options of an attachment look like to its readers: documented, and shown whatever a row holds."""

from typing import Any

import pytest
from openai.types.responses.response_output_item import ImageGenerationCall
from pydantic import BaseModel, TypeAdapter

from app.images.options import OPTIONS
from app.images.schemas import AttachmentOptions, StoredOptions
from app.worker.images import REDUCED_FROM

# Reported of a call, but for these in fields of the attachment's own or of no image that is there.
ELSEWHERE = {"id", "result", "status", "type", "revised_prompt", "error"}


class View(BaseModel):
    options: StoredOptions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": "alpha"},
        {"size": "1024x1024", "quality": "high", "output_format": "png", "reduced_from": 9_000_000},
        {"quality": "best", "background": None, "frame_count": 99, "svg": "author", "seed": {"of": [1, 2.5]}},
    ],
    ids=["none", "upload", "image", "of other days"],
)
def test_a_row_is_shown_as_it_is(options: dict[str, Any]) -> None:
    view = View.model_validate({"options": options})
    assert view.model_dump(mode="json") == {"options": options}
    assert View.model_validate_json(view.model_dump_json()) == view
    assert TypeAdapter(list[View]).dump_python([view], mode="json") == [{"options": options}]


def test_the_document_names_all_that_a_row_may_hold() -> None:
    reported = ImageGenerationCall.model_fields.keys() - ELSEWHERE
    named = {*OPTIONS, *reported, "mask", REDUCED_FROM}
    assert AttachmentOptions.__annotations__.keys() <= named
    document = View.model_json_schema(mode="serialization")
    assert document["properties"]["options"] == {"$ref": "#/$defs/AttachmentOptions"}
    shown = document["$defs"]["AttachmentOptions"]
    assert shown["properties"].keys() == named
    assert shown["additionalProperties"] is True
    assert "required" not in shown
