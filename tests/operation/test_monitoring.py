"""The alert rules and the dashboard ask for nothing that the processes do not export."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Call, MatrixSelector, ParenExpr, SubqueryExpr, VectorSelector

from app.logins import EMBEDDED_LOGIN
from tests.app_server import running_server
from tests.conftest import Postgres
from tests.scrapes import scrape, worst_case
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "monitoring"
# What Prometheus adds to each series, and to each target.
OF_PROMETHEUS = {"job", "instance"}
UP = "up"
# Grafana puts an interval there.
INTERVAL = "$__rate_interval"


@dataclass(frozen=True)
class Exported:
    """Each series that a process exports, with its labels."""

    labels: dict[str, set[str]]

    def faults(self, expression: str) -> list[str]:
        """Names and labels that nobody exports; raises ValueError for what is no PromQL."""
        found: list[str] = []
        for name, labels in used(promql_parser.parse(expression.replace(INTERVAL, "5m"))):
            if name != UP and name not in self.labels:
                found.append(name)
            elif unknown := labels - self.labels.get(name, set()) - OF_PROMETHEUS:
                found.append(f"{name}{sorted(unknown)}")
        return found


@pytest.fixture(scope="module")
def exported(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    port, directory = free_port(), tmp_path_factory.mktemp("exporting")
    with (
        postgres.database(migrated_template) as url,
        running_server(url, provider_url, directory, login=EMBEDDED_LOGIN, metrics_port=port),
    ):
        seen = scrape(port)
    # Series that nothing has happened to yet, whose families a process exports all the same.
    others = {name: labels for name, labels in worst_case().labels().items() if family_of(name) in seen.families}
    return Exported(seen.labels() | others)


def family_of(name: str) -> str:
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


def used(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """Each selector's name, with the labels that it, or what it is aggregated by, asks for."""
    yield from _used(expression, set())


def _used(expression: Any, by: set[str]) -> Iterator[tuple[str, set[str]]]:
    match expression:
        case VectorSelector():
            yield expression.name or "", {matcher.name for matcher in expression.matchers.matchers} | by
        case MatrixSelector():
            yield from _used(expression.vector_selector, by)
        case AggregateExpr():
            of = set(expression.modifier.labels) if expression.modifier else set[str]()
            yield from _used(expression.expr, by | of)
        case BinaryExpr():
            yield from _used(expression.lhs, by)
            yield from _used(expression.rhs, by)
        case Call():
            for argument in expression.args:
                yield from _used(argument, by)
        case ParenExpr() | SubqueryExpr():
            yield from _used(expression.expr, by)
        case _:
            pass


def rules() -> list[dict[str, Any]]:
    groups = cast(dict[str, Any], yaml.safe_load((FOLDER / "alerts.yml").read_text()))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"] if "targets" in panel]


def test_every_alert_asks_for_what_is_exported(exported: Exported) -> None:
    assert len(rules()) >= 10
    assert [(rule["alert"], found) for rule in rules() if (found := exported.faults(rule["expr"]))] == []


def test_every_panel_asks_for_what_is_exported(exported: Exported) -> None:
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    assert [(title, found) for title, expression in asked if (found := exported.faults(expression))] == []


def test_every_family_of_ours_is_on_the_dashboard(exported: Exported) -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    ours = {family_of(name) for name in exported.labels if name.startswith("easel_")}
    assert len(ours) > 20
    assert {family for family in ours if family not in shown} == set()


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(easel_runs_totals[5m]))", "easel_runs_totals"),
        ('rate(easel_runs_total{state="failed"}[5m])', "easel_runs_total['state']"),
        ("sum by (tenant) (increase(easel_runs_total[5m])) > 0", "easel_runs_total['tenant']"),
        ("max(easel_run_seconds) / 2", "easel_run_seconds"),
        ("absent(easel_worker)", "easel_worker"),
        ("(sum by (le, agents) (rate(easel_run_seconds_bucket[5m])))", "easel_run_seconds_bucket['agents']"),
    ],
)
def test_a_name_or_label_that_nobody_exports_is_noticed(exported: Exported, expression: str, fault: str) -> None:
    assert exported.faults(expression) == [fault]


def test_an_expression_that_prometheus_cannot_read_is_noticed(exported: Exported) -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        exported.faults("sum(rate(easel_runs_total[5m])")


def test_every_alert_says_what_it_means_and_the_first_three_steps() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "steps"}, rule["alert"]
        steps = rule["annotations"]["steps"].splitlines()
        assert [step[:3] for step in steps] == ["1. ", "2. ", "3. "], rule["alert"]


def test_the_log_messages_settings_and_alerts_that_the_steps_name_are_there() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    sources = " ".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    named = set(re.findall(r"`(\w+\.\w+)`", text))
    assert len(named) > 5
    assert {name for name in named if f'"{name}"' not in sources} == set()
    settings = (ROOT / ".env.example").read_text()
    assert {name for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text) if f"\n{name}=" not in settings} == set()
    alerts = {rule["alert"] for rule in rules()}
    assert set(re.findall(r"\bEasel[A-Z]\w+", text)) == alerts
