"""From the id of an answer one search finds a run's lines in the logs of two APIs and two workers."""

import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import timeouts
from tests.app_server import ApiUser, kinds, shared_parts
from tests.json_log import Line, find, lines_of
from tests.processes import Processes, running_processes
from tests.results import Results
from tests.tables import rows
from tests.timeouts import wait_until

NAMES = ("api one", "api two", "worker one", "worker two")


@dataclass
class FourProcesses:
    """Each has a log of its own."""

    directory: Path
    database_url: str
    by_name: dict[str, Processes]
    apis: list[str]

    def lines(self, name: str, *, of: str | None = None) -> list[Line]:
        """Those of one process; `of` is what is searched for."""
        text = (self.directory / name / "log").read_text()
        # The line that is just being written is none yet.
        whole = text[: text.rfind("\n") + 1]
        return lines_of("".join(line for line in whole.splitlines(keepends=True) if of is None or of in line))

    def names_with(self, event: str, **fields: object) -> list[str]:
        return [name for name in self.by_name if find(self.lines(name), event, **fields)]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Generator[FourProcesses]:
    directory = tmp_path_factory.mktemp("four")
    postgres, template = request.getfixturevalue("postgres"), request.getfixturevalue("migrated_template")
    with ExitStack() as stack:
        settings = {name.upper(): str(value) for name, value in stack.enter_context(shared_parts(directory)).items()}
        database_url = stack.enter_context(postgres.database(template))
        variables = {
            **settings,
            "DATABASE_URL": database_url,
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": request.getfixturevalue("provider_url"),
            "EMBEDDED_WORKER": "false",
            "RUN_LEASE_SECONDS": "3",
        }
        started = {name: stack.enter_context(running_processes(directory / name, variables)) for name in NAMES}
        for name in NAMES[2:]:
            started[name].worker()
        yield FourProcesses(directory, database_url, started, [started[name].api()[1] for name in NAMES[:2]])


@pytest.mark.slow
@pytest.mark.proof
def test_one_search_finds_a_run_in_four_processes_also_after_a_takeover(four: FourProcesses, results: Results) -> None:
    ada = ApiUser(four.apis[0])
    body = {"input": "Draw a slow house [offline: slow=3]", "agent_key": "designer", "image": {"quality": "low"}}
    answer = ada.http.post("/v1/runs", json=body)
    request_id, run = answer.headers["X-Request-Id"], answer.json()
    (first,) = once(lambda: four.names_with("run.start", run_id=run["id"]))
    named = "SELECT 1 FROM runs WHERE id = CAST(:run AS uuid) AND response_id IS NOT NULL"
    wait_until(lambda: bool(rows(four.database_url, named, {"run": run["id"]})))
    for pid in list(four.by_name[first].pids):
        four.by_name[first].kill(pid, signal.SIGKILL)
    with ada.at(four.apis[1]) as elsewhere, elsewhere.stream("GET", f"/v1/runs/{run['id']}/events") as stream:
        reader_id = stream.headers["X-Request-Id"]
        assert "event: run.completed" in stream.read().decode()
    (second,) = once(lambda: four.names_with("run.end", run_id=run["id"]))
    once(lambda: four.names_with("request", request_id=reader_id))
    found = {name: four.lines(name, of=request_id) for name in NAMES}
    events = {name: [line["event"] for line in lines] for name, lines in found.items()}
    assert first != second
    assert events["api one"] == ["request"]
    assert events[first] == ["run.start"]
    assert (events[second][0], events[second][-1]) == ("run.start", "run.end")
    assert events["api two"] == ["request"]
    for lines in found.values():
        for line in lines:
            assert line["run_id"] == run["id"]
            assert (line["tenant_id"], line["user_id"]) == (ada.signed_up["tenant"]["id"], ada.id)
    # What the search does not find is not about this run.
    assert [line for name in NAMES for line in four.lines(name, of=run["id"]) if line not in found[name]] == []
    starts = [find(found[name], "run.start")[0]["attempt"] for name in (first, second)]
    (end,) = find(found[second], "run.end")
    assert (starts, end["attempt"], end["outcome"], end["images"]) == ([1, 2], 2, "completed", 1)
    kept = f"{sum(map(len, found.values()))} lines in 4 processes"
    results(30, "one search", tried="a run with a takeover, read at the other API", kept=kept)


def once(look: Callable[[], list[str]]) -> list[str]:
    wait_until(lambda: bool(look()), timeouts.PATIENCE)
    return look()


def test_every_line_of_every_process_is_json(four: FourProcesses) -> None:
    ada = ApiUser(four.apis[1])
    assert kinds(ada.ask("Hello"))[-1] == "run.completed"
    lines = [line for name in NAMES for line in four.lines(name)]
    assert all({"time", "level", "event", "logger"} <= line.keys() for line in lines)
    assert "uvicorn.error" in {line["logger"] for line in lines}
    assert {line["level"] for line in lines} <= {"info", "warning", "error"}
