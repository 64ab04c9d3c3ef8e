"""What `easel demo` prints, event by event."""

from typing import Any

import pytest

from app.commands.demo import Transcript

Event = dict[str, Any]

STORED: Event = {"type": "attachment.created", "attachment": {"object_id": "42"}}
PREVIEW: Event = {"type": "image.partial", "index": 0, "width": 16, "height": 16, "mime_type": "image/png"}
DRAWING: Event = {"type": "tool.started", "name": "image_generation", "status": "in_progress"}
COMPLETED: Event = {"type": "run.completed"}


def test_a_sentence_stays_whole_whatever_arrives_in_the_middle_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    _play(DRAWING, *_text("Here is", PREVIEW, " your image.", STORED, " Enjoy!"), COMPLETED)
    assert capsys.readouterr().out.splitlines() == [
        "  … image_generation: in progress",
        "Designer: Here is your image. Enjoy!",
        "  … preview 1: 16x16 image/png",
        "  … stored as 42",
    ]


def test_what_arrives_between_sentences_is_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = _play(*_text("I draw."), DRAWING, PREVIEW)
    first = capsys.readouterr().out
    assert first.splitlines()[-1] == "  … preview 1: 16x16 image/png"
    transcript.add(STORED)
    assert capsys.readouterr().out == "  … stored as 42\n"


def test_a_run_without_an_image_is_no_failure() -> None:
    assert _play(*_text("No image."), COMPLETED).completed
    failed = {"type": "run.failed", "run": {"status": "failed"}, "error": {"message": "It broke."}}
    assert not _play(failed).completed


def _text(*parts: str | Event) -> list[Event]:
    return [{"type": "text.delta", "delta": part} if isinstance(part, str) else part for part in parts]


def _play(*events: Event) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript
