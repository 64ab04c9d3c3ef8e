"""What each process loads: the SDKs cost a second of processor and 70 MB, so that only what executes runs has them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SDKS = {"openai", "agents", "mcp", "griffe"}
STORES = {"minio", "google"}
SERVICE = {"fastapi", "sqlalchemy", "alembic", "docket", "prometheus_client", "uvicorn"}
EVERYTHING = {*SDKS, *STORES, *SERVICE, "PIL", "pydantic", "httpx"}

PRINT_LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
API = """
from app.embedded import Parts
from app.main import create_app
from app.settings import Settings

settings = Settings(_env_file=None, redis_url="redis://127.0.0.1:1", embedded_worker={worker})
create_app(settings, Parts("postgresql://127.0.0.1:1/none", None, "key"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "absent", "present"),
    [
        ("import app.cli", EVERYTHING, {"typer"}),
        (API.format(worker=False), {*SDKS, *STORES, "alembic", "PIL", "httpx"}, {"fastapi"}),
        (API.format(worker=True), {*STORES, "alembic"}, {"fastapi", "openai", "agents"}),
        ("import app.commands.worker", {*STORES, "alembic"}, {"openai", "agents"}),
        ("import app.commands.serve", {*SDKS, "docket", "uvicorn"}, {"sqlalchemy"}),
        ("import app.commands.demo", {*SDKS, "docket", "uvicorn", "httpx"}, {"sqlalchemy"}),
        ("import app.storage.memory", {*STORES, *SDKS}, {"pydantic"}),
        ("import app.storage.minio", {"google", *SDKS}, {"minio"}),
    ],
    ids=[
        "the command's help",
        "an API without a worker",
        "an API with a worker",
        "a worker",
        "until its parts start",
        "until the demo's start",
        "memory",
        "minio",
    ],
)
def test_only_what_is_used_is_loaded(program: str, absent: set[str], present: set[str]) -> None:
    script = f"{program}\n{PRINT_LOADED}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(ran.stdout))
    assert loaded & absent == set()
    assert present <= loaded


SERVE = """
import sys
from app import cli

def show(command):
    load_command(command)
    from app.runs.schemas import RunView
    from fastapi.openapi.models import OpenAPI
    from key_value.aio import disable_beartype
    sys.exit(f"{{OpenAPI.__pydantic_complete__}} {{RunView.__pydantic_complete__}} {{disable_beartype}}")

load_command, cli.load_command = cli.load_command, show
cli.{command}()
"""
UNBUILT = """
import app.worker.process, pydantic
from app.runs.schemas import RunView
from mcp_types import CallToolResult

print(CallToolResult.__pydantic_complete__, RunView.__pydantic_complete__, pydantic.BaseModel.model_config)
result = CallToolResult.model_validate({"content": [{"type": "text", "text": "42"}]})
print(CallToolResult.__pydantic_complete__, result.content[0].text)
"""


@pytest.mark.slow
def test_the_models_of_the_sdks_are_built_when_they_are_used() -> None:
    command = [sys.executable, "-c", UNBUILT]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines() == ["False True {}", "True 42"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "worker", "demo"])
def test_serving_neither_builds_an_openapi_documents_models_nor_checks_dockets_types(command: str) -> None:
    script = SERVE.format(command=command)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert ran.stderr.split() == ["False", "True", "True"]


EMBEDDED = """
import sys
from pathlib import Path
from app.embedded import running_parts
from app.settings import Settings

with running_parts(Settings(_env_file=None, data_dir=Path(sys.argv[1]), openai_api_key="sk-test")):
    print("alembic" in sys.modules)
"""


@pytest.mark.slow
def test_an_embedded_database_that_is_up_to_date_starts_without_alembic(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EMBEDDED, str(tmp_path)]
    starts = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=60) for _ in range(2)]
    assert [started.stdout.strip() for started in starts] == ["True", "False"]
