"""What the tests of the ledger may ask for beside what every test may."""

import pytest

from tests.app_server import AppServer


@pytest.fixture
def database(server: AppServer) -> str:
    """That of the server, which other tests use as well."""
    assert server.settings.database_url
    return server.settings.database_url.get_secret_value()
