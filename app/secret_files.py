"""Secrets that lie in files, as Docker and Kubernetes mount them: `SECRET_KEY_FILE` names the file of `SECRET_KEY`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo


def secrets_of(fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> dict[str, str]:
    """For each secret of `fields` whose `<name>_file` is set, by `given` or the environment: what the file says.

    Raises ValueError for a file that cannot be read or is empty, and for a setting that is given twice.
    """
    environment = {name.lower(): value for name, value in os.environ.items() if value}
    found: dict[str, str] = {}
    for name in (name for name, field in fields.items() if "SecretStr" in str(field.annotation)):
        path = environment.get(f"{name}_file") or given.get(f"{name}_file")
        if path and given.get(name):
            raise ValueError(f"{name.upper()} and {name.upper()}_FILE are both set: keep one of them")
        if path:
            found[name] = _read(f"{name.upper()}_FILE", path)
    return found


def _read(setting: str, path: str) -> str:
    """The file's text, without its last newline."""
    try:
        text = Path(path).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting} names {path}, which cannot be read ({_reason(error)})") from None
    if not text:
        raise ValueError(f"{setting} names {path}, which is empty")
    return text


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8"
