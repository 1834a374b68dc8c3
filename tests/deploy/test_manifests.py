"""What k8s/ makes of itself is what an API server takes, and keeps to our own rules."""

import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Whose schemas; an older API server takes less.
KUBERNETES = "1.34"
SERVICES = ("gateway", "candidate-svc", "filter-svc", "ranker-svc", "hydrator-svc")
WORKLOADS = ("Deployment", "StatefulSet", "Job")

Manifest = dict[str, Any]


def built(folder: str) -> list[Manifest]:
    """The manifests of a kustomization; skips the test where nothing builds them."""
    for program in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(program[0]):
            found = subprocess.run(
                [*program, str(ROOT / folder)], capture_output=True, text=True, check=True
            )
            return [each for each in yaml.safe_load_all(found.stdout) if each]
    pytest.skip("neither kustomize nor kubectl is installed")


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return built("k8s/base")


def test_every_manifest_is_one_that_an_api_server_takes(base: list[Manifest]) -> None:
    for manifest in base:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("field", ["image", "ports", "resources"])
def test_a_misspelt_field_is_found(base: list[Manifest], field: str) -> None:
    broken = deepcopy(next(each for each in base if each["kind"] == "Deployment"))
    container = broken["spec"]["template"]["spec"]["containers"][0]
    container[f"{field}s"] = container.pop(field)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_every_service_has_all_that_it_needs(base: list[Manifest]) -> None:
    kinds = (
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
        *("ServiceAccount", "NetworkPolicy"),
    )
    there = {(each["kind"], each["metadata"]["name"]) for each in base}
    assert {(kind, name) for name in SERVICES for kind in kinds} <= there


def test_grpc_services_are_headless_and_the_gateway_spreads_over_their_pods(
    base: list[Manifest],
) -> None:
    services = {
        each["metadata"]["name"]: each["spec"] for each in base if each["kind"] == "Service"
    }
    [settings] = (each["data"] for each in base if each["kind"] == "ConfigMap")
    for name in SERVICES[1:]:
        [port] = services[name]["ports"]
        assert services[name]["clusterIP"] == "None"
        variable = f"FEED_{name.partition('-')[0].upper()}_ADDRESS"
        assert settings[variable] == f"dns:///{name}:{port['port']}"


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Each container, with its workload's name and its pod's specification."""
    for manifest in manifests:
        if manifest["kind"] in WORKLOADS:
            pod = manifest["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield manifest["metadata"]["name"], pod, container


def test_no_container_may_do_more_than_it_must(base: list[Manifest]) -> None:
    for name, pod, container in containers(base):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_every_container_says_what_it_needs_and_whether_it_lives(base: list[Manifest]) -> None:
    for name, _, container in containers(base):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        if name != "prepare":
            assert "livenessProbe" in container, name


def test_a_pod_that_is_called_is_told_apart_from_one_that_is_not_ready(
    base: list[Manifest],
) -> None:
    for name, pod, container in containers(base):
        if name in SERVICES:
            assert {"startupProbe", "readinessProbe"} <= container.keys(), name
            # Clients learn that a pod goes before it stops to listen.
            pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pause < pod["terminationGracePeriodSeconds"], name
