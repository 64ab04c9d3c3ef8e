"""The manifests of docs/kubernetes: what Kubernetes accepts, and what Easel makes of it."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app import __version__
from app.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
# From the first whose lifecycle knows `sleep` without being asked to the newest that the validator knows.
OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
SECRETS = {
    "DATABASE_URL": "postgresql://easel_service@db/easel",
    "REDIS_URL": "redis://valkey",
    "SECRET_KEY": "".join(map(str, range(40))),
    "OPENAI_API_KEY": "sk-test",
}


def manifests() -> dict[str, dict[str, Any]]:
    """By kind and name."""
    texts = [path.read_text() for path in sorted(ROOT.glob("docs/kubernetes/*.yaml"))]
    documents = [document for text in texts for document in yaml.safe_load_all(text)]
    return {f"{document['kind']} {document['metadata']['name']}": document for document in documents}


MANIFESTS = manifests()
TEMPLATES = {name: each["spec"]["template"] for name, each in MANIFESTS.items() if "template" in each.get("spec", {})}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_each_manifest(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_noticed() -> None:
    wrong = MANIFESTS["ConfigMap easel"] | {"dta": "x"}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_the_settings_and_secrets_that_they_name_are_all_that_production_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = MANIFESTS["ConfigMap easel"]["data"] | SECRETS
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.production
    assert {name.lower() for name in given} <= set(type(settings).model_fields)
    told = (ROOT / "docs/kubernetes/settings.yaml").read_text().partition("apiVersion")[0]
    assert set(SECRETS) <= set(re.findall(r"[A-Z]+_[A-Z_]+", told))


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_this_version_as_nobody_in_particular_and_writes_to_its_volumes_alone(name: str) -> None:
    (container,) = PODS[name]["containers"]
    assert container["image"] == f"easel:{__version__}"
    assert PODS[name]["securityContext"]["runAsNonRoot"]
    assert re.search(r"^USER \d+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", ["Deployment easel-api", "StatefulSet easel-worker"])
def test_a_pod_that_serves_is_asked_for_its_health_and_has_time_to_end(name: str) -> None:
    (container,) = PODS[name]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = MANIFESTS["ConfigMap easel"]["data"]
    assert ports["metrics"] == int(settings["METRICS_PORT"])
    assert ports.get("http", 8000) == 8000  # PORT's default
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/livez", "/livez", "/readyz"]
    assert {probe["port"] for probe in probes.values()} <= set(ports)
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert PODS[name]["terminationGracePeriodSeconds"] >= pause + 15


def test_a_worker_keeps_its_spool_when_it_is_replaced() -> None:
    (container,) = PODS["StatefulSet easel-worker"]["containers"]
    (claim,) = MANIFESTS["StatefulSet easel-worker"]["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == re.findall(r"DATA_DIR=(\S+)", (ROOT / "Dockerfile").read_text())[0]


def test_the_migration_alone_sees_the_owners_password() -> None:
    readers = [
        name
        for name, pod in PODS.items()
        for source in pod["containers"][0]["envFrom"]
        if source.get("secretRef") == {"name": "easel-migration"}
    ]
    assert readers == ["Job easel-migrate"]


@pytest.mark.parametrize("name", [name for name, each in MANIFESTS.items() if "selector" in each.get("spec", {})])
def test_a_selector_finds_the_pods_it_is_meant_for(name: str) -> None:
    selector = MANIFESTS[name]["spec"]["selector"]
    wanted = selector.get("matchLabels", selector)
    labels = [template["metadata"]["labels"] for template in TEMPLATES.values()]
    assert [each for each in labels if wanted.items() <= each.items()] == [wanted]
    assert name.rpartition("-")[2] == wanted["app.kubernetes.io/component"]
