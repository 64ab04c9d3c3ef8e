"""Markdown links to files that only the model has: the label reaches the user, the target never does."""

import random
from pathlib import Path

import pytest

from app.worker.link_filter import MAX_LABEL, LinkFilter
from tests.app_server import one, running_server
from tests.made_streams import stream_of, text
from tests.stream_server import serving, text_of

pytestmark = pytest.mark.proof(25, "links to the model's own files")

LEFT_OUT = {
    "[your file](sandbox:/mnt/data/a.png)": "your file",
    "![a cat](sandbox:/mnt/data/cat.png)": "a cat",
    "[it](attachment:file-1)": "it",
    "[it](<sandbox:/mnt/data/a b.png>)": "it",
    '[it]( sandbox:/a.png "title")': "it",
    "[it](SandBox:/a.png)": "it",
    r"[it](sandbox\:/a.png)": "it",
    "[it](sandbox:/a_(1).png)": "it",
    "[[1] it](sandbox:/a.png)": "[1] it",
    "[![a cat](sandbox:/cat.png)](sandbox:/cat.png)": "a cat",
    "[![a cat](sandbox:/cat.png)](https://example.com)": "[a cat](https://example.com)",
    "[![a cat](https://example.com/c.png)](sandbox:/cat.png)": "![a cat](https://example.com/c.png)",
    "[1]: sandbox:/mnt/data/a.png\nMore": "1\nMore",
    "<sandbox:/mnt/data/a.png>": "",
    "[it](sandbox:/never closed": "it",
    "[it](sandbox:/never closed\nMore": "it\nMore",
    "[it](sandbox:/a.png) and [that](attachment:b)": "it and that",
}
KEPT = [
    "[a page](https://example.com/a_(1).png)",
    "![a cat](https://example.com/cat.png)",
    "a[0] = b[1](2); if a < b: c!",
    "[1, 2, [3]] <b>bold</b> <sand> [sandbox:](https://example.com)",
    "The sandbox: a box of sand. [x] (sandbox:)",
    "[not closed",
    "wow!",
    "[a][1]",
    "[a](sand",
]
NONE: list[object] = []
WHOLE = [*LEFT_OUT.items(), *((text, text) for text in KEPT)]


@pytest.mark.parametrize(("given", "shown"), WHOLE)
def test_the_label_stays_however_the_text_is_cut(given: str, shown: str) -> None:
    assert filtered([f"Here: {given}", " Bye."] if given in KEPT else [f"Here: {given}"])[:6] == "Here: "
    for seed in range(20):
        cuts = sorted(random.Random(seed).choices(range(len(given) + 1), k=seed))
        pieces = [given[start:end] for start, end in zip([0, *cuts], [*cuts, len(given)], strict=True)]
        assert filtered(pieces) == shown
    assert filtered(list(given)) == shown


def test_only_what_may_be_such_a_link_is_held_back() -> None:
    links = LinkFilter()
    assert links.feed("Hello! It is [") == "Hello! It is "
    assert links.feed("your file](") == ""
    assert links.feed("https://ex") == "[your file](https://ex"
    assert links.feed("ample.com) and ![cat](sandbox:/x") == "ample.com) and "
    assert links.feed("y.png). Bye") == "cat. Bye"
    assert links.feed(" a < b and a <= c") == " a < b and a <= c"
    assert links.finish() == ""


def test_a_bracket_that_never_closes_holds_back_no_more_than_a_label() -> None:
    links = LinkFilter()
    shown = "".join(links.feed(piece) for piece in ["[", *["word "] * (MAX_LABEL // 5)])
    assert shown == "[" + "word " * (MAX_LABEL // 5)
    assert links.feed(" [ open\n") == " "
    assert links.feed("\nA paragraph") == "[ open\n\nA paragraph"


def filtered(pieces: list[str]) -> str:
    links = LinkFilter()
    return "".join([*(links.feed(piece) for piece in pieces), links.finish()])


def test_the_stream_the_message_and_the_history_have_no_such_target(database_url: str, tmp_path: Path) -> None:
    pieces = [
        "Here is ",
        "[the",
        " file](sand",
        "box:/mnt/data/a.png)",
        ", and ![it](attachment:a)",
        ". [open](sandbox:/b",
    ]
    shown = "Here is the file, and it. open"
    with serving(stream_of(text(pieces))) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.ask("Show me the file")
        message = one(events, "message.completed")["message"]
        conversation = events[0]["run"]["conversation_id"]
        kept = ada.messages(conversation)[-1]["text"]
        replayed = ada.events(events[0]["run_id"])
    assert (text_of(events), message["text"], kept) == (shown, shown, shown)
    assert replayed[-1]["type"] == "run.completed"
    assert "sandbox:" not in str(events)
    assert "attachment:" not in str(events)


def test_the_summary_of_the_reasoning_has_no_such_target_either(database_url: str, tmp_path: Path) -> None:
    delta = {"type": "response.reasoning_summary_text.delta", "summary_index": 0}
    pieces = ["I made [a", " file](sandbox:/mnt/a.png)", " and [this](sandbox:/b"]
    ended = {"type": "response.reasoning_summary_text.done", "summary_index": 0, "text": ""}
    reasoning = {"id": "rs_made", "type": "reasoning", "summary": NONE}
    stream = stream_of((reasoning, [*({**delta, "delta": piece} for piece in pieces), ended]), text(["Done."]))
    with serving(stream) as provider, running_server(database_url, provider.url, tmp_path) as server:
        events = server.sign_up("Ada's").ask("Think")
    shown = [event["delta"] for event in events if event["type"] == "reasoning.delta"]
    assert "".join(shown) == "I made a file and this"
