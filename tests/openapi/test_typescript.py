"""Front ends in TypeScript: two generators make their types of openapi.json, and programs compile against them."""

import re
from pathlib import Path

import pytest

from tests.openapi.clients import compile_with
from tests.replies import DOCUMENT

# What uses the types of openapi-typescript, and the client of hey-api.
PROGRAMS = ("client.ts", "heyapi.ts")
CASE = re.compile(r'    case "image\.partial":\n      return .*\n')


@pytest.mark.slow
def test_a_client_compiles_where_it_handles_every_event_and_spells_error_codes_right(project: Path) -> None:
    for program in PROGRAMS:
        whole = (project / program).read_text()
        assert _handled(whole) == sorted(_events())
        faulty = CASE.sub("", whole).replace('"invalid_request"', '"invalid_requests"')
        assert len(_handled(faulty)) == len(_events()) - 1
        (project / f"faulty-{program}").write_text(faulty)
    compiled = compile_with("tsconfig.json", project)
    errors = [line for line in compiled.stdout.splitlines() if "error TS" in line]
    assert [line for line in errors if not line.startswith("faulty-")] == []
    for program in PROGRAMS:
        forgotten, unknown = (line for line in errors if line.startswith(f"faulty-{program}"))
        assert "Function lacks ending return statement" in forgotten
        assert "have no overlap" in unknown


def test_the_types_have_names_that_a_front_end_can_say() -> None:
    names = set(DOCUMENT["components"]["schemas"])
    assert {"RunEvent", "Problem", "FieldError"} <= names
    assert {name for name in names if not re.fullmatch(r"[A-Z][A-Za-z-]+", name) or "Validation" in name} == set()


def _events() -> list[str]:
    return list(DOCUMENT["components"]["schemas"]["RunEvent"]["discriminator"]["mapping"])


def _handled(program: str) -> list[str]:
    return sorted(re.findall(r'case "([a-z.]+)":', program))
