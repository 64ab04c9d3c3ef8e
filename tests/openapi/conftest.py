"""What the tests of clients in TypeScript share: to install and generate takes seconds."""

import os
from pathlib import Path

import pytest

from tests.openapi.clients import copy_of, make_clients


@pytest.fixture(scope="session")
def made_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, and what they make of the committed openapi.json; once for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    return make_clients(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture
def project(made_clients: Path, tmp_path: Path) -> Path:
    """A copy of the sources, which a test may change."""
    return copy_of(made_clients, tmp_path / "project")
