"""The Kubernetes manifests: their schemas take them, and they run what docker-compose.yml runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import ROOT
from tests.deploy.test_compose import SECRET, seconds
from workers.app import HARD_LIMIT_S

pytestmark = pytest.mark.deploy

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSIONS = ["1.30", "1.37"]
WORKLOADS = ("broker", "cache", "worker", "beat", "flower")
CHANGED = {
    "a field that there is not": lambda pod: pod.update(terminationGracePeriod=30),
    "a word for a number": lambda pod: pod.update(terminationGracePeriodSeconds="soon"),
    "a probe of no kind": lambda pod: pod["containers"][0]["livenessProbe"].update(command=["true"]),
    "no containers": lambda pod: pod.pop("containers"),
}


def documents(path: Path) -> list[dict[str, Any]]:
    import yaml

    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@cache
def everything() -> tuple[dict[str, Any], ...]:
    return tuple(document for path in FILES for document in documents(path))


def workload(name: str) -> dict[str, Any]:
    kinds = ("Deployment", "StatefulSet")
    (found,) = [one for one in everything() if one["kind"] in kinds and one["metadata"]["name"] == name]
    return found


def pod(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workload(name)["spec"]["template"]["spec"]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schemas_take_it(path: Path, version: str) -> None:
    import kubernetes_validate

    for document in documents(path):
        assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.mark.parametrize("mistake", CHANGED)
def test_the_schemas_do_not_take_one_with(mistake: str) -> None:
    import kubernetes_validate

    wrong = copy.deepcopy(workload("worker"))
    CHANGED[mistake](wrong["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.fixture(params=WORKLOADS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_runs_what_compose_runs(name: str, services: dict[str, Any]) -> None:
    service, here = services[name], container(name)
    assert here["image"] == service["image"]
    assert here["args"] == service["command"]
    assert "command" not in here  # the image's own entrypoint
    said = {key: value for key, value in (service.get("environment") or {}).items() if value is not None}
    assert {one["name"]: one["value"] for one in here.get("env", [])} == said
    assert {one["path"] for one in secrets_of(name)} == {one["source"] for one in service["secrets"]}


def secrets_of(name: str) -> list[dict[str, str]]:
    (volume,) = [volume for volume in pod(name)["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == "aicache"
    return list(volume["secret"]["items"])


def test_it_asks_after_health_as_compose_does(name: str, services: dict[str, Any]) -> None:
    kind, *words = services[name]["healthcheck"]["test"]
    probe = container(name)["livenessProbe"]
    if name == "flower":
        assert probe["httpGet"]["path"] == "/healthcheck"
        return
    asked = probe["exec"]["command"]
    assert asked == (["/bin/sh", "-c", words[0].replace("$$", "$")] if kind == "CMD-SHELL" else words)
    assert container(name)["startupProbe"]["exec"]["command"] == asked


def test_it_has_the_time_to_stop_that_compose_gives(name: str, services: dict[str, Any]) -> None:
    assert pod(name)["terminationGracePeriodSeconds"] == seconds(services[name]["stop_grace_period"])
    assert pod("worker")["terminationGracePeriodSeconds"] > HARD_LIMIT_S


def test_it_is_hardened(name: str, services: dict[str, Any]) -> None:
    context = pod(name)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == services[name]["user"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    assert container(name)["resources"]["limits"].keys() == {"cpu", "memory"}


def test_flower_is_not_given_service_links(name: str) -> None:
    """A service named flower makes FLOWER_PORT=tcp://…, which Flower would take for its port."""
    assert pod(name)["enableServiceLinks"] is False


def test_what_is_mounted_is_there_and_the_other_way_round(name: str) -> None:
    claims = workload(name)["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in pod(name)["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in container(name)["volumeMounts"]} == volumes


def test_selectors_find_their_pods(name: str) -> None:
    labels = workload(name)["spec"]["template"]["metadata"]["labels"]
    assert workload(name)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for other in everything():
        if other["metadata"]["name"] == name and other["kind"] in ("Service", "PodDisruptionBudget"):
            selector = other["spec"]["selector"]
            assert (selector.get("matchLabels") or selector).items() <= labels.items()


def test_the_servers_have_the_names_that_the_urls_have(passwords: Path) -> None:
    services = {one["metadata"]["name"] for one in everything() if one["kind"] == "Service"}
    hosts = {re.findall(r"@(\w+):6379", path.read_text())[0] for path in passwords.glob("*_url")}
    assert hosts == {"broker", "cache"} <= services


def test_beat_is_one_and_never_two_while_it_is_replaced() -> None:
    assert (workload("beat")["spec"]["replicas"], workload("beat")["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_policies_name_components_that_there_are_and_let_clients_in() -> None:
    text = (FOLDER / "network-policy.yaml").read_text()
    servers = next(one for one in everything() if one["metadata"]["name"] == "aicache-servers")
    of_this_namespace = [peer["podSelector"]["matchLabels"] for peer in servers["spec"]["ingress"][0]["from"]]
    assert of_this_namespace == [{"app.kubernetes.io/part-of": "aicache"}, {"aicache/is-client": "true"}]
    assert '`aicache/is-client: "true"`' in (ROOT / "docs" / "deployment.md").read_text()
    named = {word for listed in re.findall(r"values: \[([\w, ]+)\]", text) for word in listed.split(", ")} | {"flower"}
    assert named == set(WORKLOADS)


def test_nothing_names_a_namespace_or_holds_a_secret() -> None:
    for document in everything():
        assert "namespace" not in document["metadata"]
        assert document["kind"] != "Secret"
        for key, value in strings(document):
            assert not SECRET.fullmatch(key) or value.startswith("/run/secrets/")


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text of a document with the name that it has there."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, key)
    elif isinstance(value, str):
        yield key, value
