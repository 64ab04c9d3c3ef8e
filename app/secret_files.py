"""Secrets that lie in files, as Docker and Kubernetes mount them: `SECRET_KEY_FILE` names the file of `SECRET_KEY`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def from_files(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Of the settings `names`, those for which `given` has a `<name>_file`: the file's text, without its last newline.

    Raises ValueError for a file that cannot be read or is empty, and for a setting that is given twice.
    """
    found: dict[str, str] = {}
    for name in names:
        path = given.get(f"{name}_file")
        if not path:
            continue
        setting = f"{name.upper()}_FILE"
        if given.get(name):
            raise ValueError(f"{name.upper()} and {setting} are both set: keep one of them")
        try:
            text = Path(path).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{setting} names {path}, which cannot be read ({_reason(error)})") from None
        if not text:
            raise ValueError(f"{setting} names {path}, which is empty")
        found[name] = text
    return found


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8"
