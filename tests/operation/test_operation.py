"""What operators see: readiness."""

from pathlib import Path

from tests.app_server import AppServer, running_server


def test_readyz_refuses_while_the_schema_is_behind_and_names_the_command(
    empty_database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with running_server(
        empty_database_url, provider_url, tmp_path, embedded_worker=False, redis_url="memory://x"
    ) as server:
        answer = server.anyone().get("/readyz")
        assert answer.status_code == 503
        assert "just migrate" in answer.json()["detail"]
        assert answer.headers["retry-after"]


def test_probes_need_no_credentials(server: AppServer) -> None:
    client = server.anyone()
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
