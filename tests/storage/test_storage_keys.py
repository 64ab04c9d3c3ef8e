"""Keys, file names and endpoints: what must be right before any storage is asked."""

import pytest

from app.settings import Settings, SettingsError
from app.storage.endpoint import parse_endpoint
from app.storage.keys import content_disposition
from app.storage.service import open_store


@pytest.mark.parametrize(
    ("value", "endpoint"),
    [
        ("localhost:9000", ("localhost:9000", True)),
        ("http://localhost:9000", ("localhost:9000", False)),
        ("https://s3.example/", ("s3.example", True)),
        ("[::1]:9000", ("[::1]:9000", True)),
    ],
)
def test_an_endpoint_is_a_host_or_a_url_whose_scheme_wins(value: str, endpoint: tuple[str, bool]) -> None:
    assert parse_endpoint(value, secure=True, name="MINIO_ENDPOINT") == endpoint


@pytest.mark.parametrize(
    "changes",
    [
        {"minio_endpoint": "http://127.0.0.1:9000/s3"},
        {"minio_endpoint": "ftp://127.0.0.1"},
        {"minio_public_endpoint": "https://user:word@127.0.0.1"},
        {"minio_endpoint": "127.0.0.1:port"},
        {"storage_bucket": "No"},
        {"storage_provider": "gcs", "gcs_credentials_file": "missing.json"},
        {"storage_provider": "gcs", "gcs_bucket": "a/b"},
    ],
)
def test_impossible_settings_are_rejected_by_name(changes: dict[str, str]) -> None:
    usable = {
        "storage_provider": "minio",
        "minio_endpoint": "127.0.0.1:9000",
        "minio_access_key": "key",
        "minio_secret_key": "secret",
    }
    with pytest.raises(SettingsError, match=list(changes)[-1].upper()):
        open_store(Settings.model_validate(usable | changes))


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("a.png", 'inline; filename="a.png"'),
        ('x"; evil=1\r\nSet-Cookie: a.png', "inline; filename=\"x__ evil_1Set-Cookie_ a.png\"; filename*=UTF-8''"),
        ("../../etc/passwd", 'inline; filename="_.._etc_passwd"'),
        ("gnp.\u202eexe.png", 'inline; filename="gnp.exe.png"'),
        ("", 'inline; filename="file"'),
        ("x" * 300 + ".png", f'inline; filename="{"x" * 146}.png"'),
    ],
)
def test_a_filename_cannot_break_out_of_its_header(filename: str, header: str) -> None:
    value = content_disposition(filename, inline=True)
    assert value.startswith(header)
    assert value.isascii()
    assert value.isprintable()
