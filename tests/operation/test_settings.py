"""What an operator may set, and how: by the environment, `.env`, files of secrets, and the names platforms use."""

from pathlib import Path

import pytest

from app import __version__
from app.settings import SettingsError, load_settings
from tests.app_server import Easel

ROOT = Path(__file__).resolve().parents[2]
KEY = "of-somebody-" * 4


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` of the checkout."""
    monkeypatch.chdir(tmp_path)


def test_a_secret_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("SECRET_KEY_FILE", str(tmp_path / "key"))
    assert load_settings().signing_keys() == [KEY]


def test_a_file_of_dotenv_may_name_the_file_of_a_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / ".env").write_text(f"SECRET_KEY_FILE={tmp_path / 'key'}\nSOMEBODY_ELSES_FILE=/nowhere\n")
    assert load_settings().signing_keys() == [KEY]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"REDIS_URL_FILE": "nowhere"}, r"REDIS_URL_FILE names nowhere, which cannot be read \(No such file"),
        ({"REDIS_URL_FILE": "."}, r"REDIS_URL_FILE names ., which cannot be read \(Is a directory\)"),
        ({"REDIS_URL_FILE": "empty"}, "REDIS_URL_FILE names empty, which is empty"),
        ({"REDIS_URL_FILE": "binary"}, r"REDIS_URL_FILE names binary, which cannot be read \(it is not UTF-8\)"),
        ({"REDIS_URL_FILE": "empty", "REDIS_URL": "redis://x"}, "REDIS_URL and REDIS_URL_FILE are both set"),
    ],
)
def test_a_file_that_gives_no_secret_is_named(
    variables: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=sentence):
        load_settings()


def test_no_other_setting_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("https://elsewhere.example")
    monkeypatch.setenv("PUBLIC_URL_FILE", str(tmp_path / "url"))
    assert load_settings().public_url is None


@pytest.mark.parametrize(
    ("variables", "proxies"),
    [
        ({"FORWARDED_ALLOW_IPS": "10.0.0.0/8,127.0.0.1"}, ["10.0.0.0/8", "127.0.0.1"]),
        ({"FORWARDED_ALLOW_IPS": "*"}, ["0.0.0.0/0", "::/0"]),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.0/8", "TRUSTED_PROXIES": "127.0.0.1"}, ["127.0.0.1"]),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.0/8", "TRUSTED_PROXIES": ""}, ["10.0.0.0/8"]),
    ],
)
def test_the_proxies_have_uvicorns_name_as_well(
    variables: dict[str, str], proxies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings().trusted_proxies == proxies


def test_the_command_prints_every_setting_and_its_version(easel: Easel) -> None:
    assert easel("settings") == (ROOT / ".env.example").read_text()
    assert easel("--version") == f"easel {__version__}\n"
