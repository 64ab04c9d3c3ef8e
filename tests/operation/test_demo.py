"""What `easel demo` prints, event by event."""

from uuid import UUID, uuid4

import pytest

from app.attachments.schemas import AttachmentView
from app.commands.demonstration import Transcript
from app.error_codes import ErrorCode
from app.runs.events import AttachmentCreated, Event, ImagePartial, RunCompleted, RunFailed, TextDelta, ToolStarted
from app.runs.models import RunError, RunStatus
from app.runs.schemas import RunView

STORED = AttachmentCreated.model_construct(attachment=AttachmentView.model_construct(object_id=UUID(int=42)))
PREVIEW = ImagePartial.model_construct(index=0, width=16, height=16, mime_type="image/png")
DRAWING = ToolStarted(tool_call_id="ig_1", name="image_generation", status="in_progress")
COMPLETED = RunCompleted.model_construct(run=RunView.model_construct(status=RunStatus.COMPLETED, error=None))
BROKEN = RunError(code=ErrorCode.UPSTREAM_FAILED, message="It broke.", retryable=True)
FAILED = RunFailed.model_construct(run=RunView.model_construct(status=RunStatus.FAILED, error=BROKEN))


def test_a_sentence_stays_whole_whatever_arrives_in_the_middle_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    _play(DRAWING, *_text("Here is", PREVIEW, " your image.", STORED, " Enjoy!"), COMPLETED)
    assert capsys.readouterr().out.splitlines() == [
        "  … image_generation: in progress",
        "Designer: Here is your image. Enjoy!",
        "  … preview 1: 16x16 image/png",
        f"  … stored as {UUID(int=42)}",
    ]


def test_what_arrives_between_sentences_is_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = _play(*_text("I draw."), DRAWING, PREVIEW)
    first = capsys.readouterr().out
    assert first.splitlines()[-1] == "  … preview 1: 16x16 image/png"
    transcript.add(STORED)
    assert capsys.readouterr().out == f"  … stored as {UUID(int=42)}\n"


def test_a_run_without_an_image_is_no_failure() -> None:
    assert _play(*_text("No image."), COMPLETED).completed
    assert not _play(FAILED).completed


def _text(*parts: str | Event) -> list[Event]:
    return [TextDelta(message_id=uuid4(), delta=part) if isinstance(part, str) else part for part in parts]


def _play(*events: Event) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript
