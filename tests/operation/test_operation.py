"""What operators and browsers see: readiness, metrics, CORS."""

from pathlib import Path

from tests.app_server import AppServer, running_server

ORIGIN = "https://app.example.com"


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
    assert "python_info" in client.get("/metrics").text


def test_only_listed_origins_may_read_answers(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, cors_origins=[ORIGIN]) as server:
        client = server.anyone()
        preflight = {"Access-Control-Request-Method": "POST", "Origin": ORIGIN}
        assert client.options("/v1/runs", headers=preflight).headers["access-control-allow-origin"] == ORIGIN
        refused = client.options("/v1/runs", headers={**preflight, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers
        seen = client.get("/livez", headers={"Origin": ORIGIN})
        assert "X-Run-Id" in seen.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in seen.headers
