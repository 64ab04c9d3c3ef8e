"""What every request costs beside its own work: no thread, and few statements."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from app.db import Database
from tests.app_server import ApiUser, AppServer, one
from tests.round_trips import counting

# A connection that has not prepared a statement yet sends it twice, and the service's own work may fall in between.
TRIES = 12


def test_no_dependency_of_a_route_is_called_in_a_thread(server: AppServer) -> None:
    routes = [context.original_route for context in iter_route_contexts(server.uvicorn.app.routes)]
    called = {call for route in routes if isinstance(route, APIRoute) for call in calls(route.dependant)}
    assert len(called) > 10
    assert [call for call in called if not is_asynchronous(call)] == []


def test_the_first_request_makes_no_route_anew(server: AppServer) -> None:
    app = server.uvicorn.app
    documented = [operation for path in app.openapi()["paths"].values() for operation in path.values()]
    made = {route.name for route in app.routes if isinstance(route, APIRoute)}
    assert {operation["operationId"] for operation in documented} <= made


def calls(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from calls(dependency)


def is_asynchronous(call: Any) -> bool:
    function = call if inspect.isroutine(call) or inspect.isclass(call) else call.__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


@pytest.mark.parametrize(
    ("path", "statements"),
    [
        ("/v1/me", 1),
        ("/v1/conversations/{talk}/messages", 3),
        ("/v1/attachments", 2),
        ("/v1/attachments?q=house", 3),
    ],
)
def test_a_read_takes_so_many_statements_at_most(server: AppServer, ada: ApiUser, path: str, statements: int) -> None:
    path = path.format(talk=one(ada.draw(), "run.created")["run"]["conversation_id"])
    key = ada.http.post("/v1/api-keys", json={"name": "Reads"}).json()["key"]
    database: Database = server.uvicorn.app.state.database
    for authorization in (ada.http.headers["Authorization"], f"Bearer {key}"):
        headers = {"Authorization": authorization}
        sent: list[list[str]] = []
        for _ in range(TRIES):
            with counting(database.engine) as trips:
                assert ada.http.get(path, headers=headers).status_code == 200
            sent.append(list(trips.statements))
        least = min(sent, key=len)
        assert len(least) <= statements, least
