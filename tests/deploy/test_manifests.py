"""What k8s/ makes of itself is what an API server takes, and keeps to our own rules."""

import re
import subprocess
from copy import deepcopy
from ipaddress import ip_network
from typing import cast

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute

from gateway import auth, debug, explain, feed, impressions, likes, ops, posts, uploads, users
from mesh.settings import Settings
from stack import images
from tests.deploy import policies
from tests.deploy.builds import COMPONENTS, K8S, OVERLAYS, ROOT, Builds
from tests.deploy.policies import Manifest, Rule, pods, title

# Whose schemas; an older API server takes less.
KUBERNETES = "1.34"
SERVICES = ("gateway", "candidate-svc", "filter-svc", "ranker-svc", "hydrator-svc")
# What a generator of passwords or keys makes: words are shorter.
_LIKE_A_KEY = re.compile(r"[0-9A-Za-z]{20}|[0-9A-Fa-f]{16}")
BUILDS = [
    *("base", *OVERLAYS, "k3s and jobs", "production and jobs"),
    *(f"production with {name}" for name in COMPONENTS),
]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("manifests") / "k8s")


@pytest.fixture(scope="module", params=BUILDS)
def build(builds: Builds, request: pytest.FixtureRequest) -> list[Manifest]:
    return builds[request.param]


@pytest.fixture(scope="module")
def base(builds: Builds) -> list[Manifest]:
    return builds["base"]


@pytest.fixture(scope="module")
def production(builds: Builds) -> list[Manifest]:
    return builds["production"]


# -- every build ------------------------------------------------------------------------------


def test_every_manifest_is_one_that_an_api_server_takes(build: list[Manifest]) -> None:
    for manifest in build:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("field", ["image", "ports", "resources"])
def test_a_misspelt_field_is_found(base: list[Manifest], field: str) -> None:
    broken = deepcopy(next(each for each in base if each["kind"] == "Deployment"))
    container = broken["spec"]["template"]["spec"]["containers"][0]
    container[f"{field}s"] = container.pop(field)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("rule", policies.RULES, ids=lambda rule: rule.__name__)
def test_nothing_breaks_a_rule(build: list[Manifest], rule: Rule) -> None:
    assert rule(build) == []


def test_every_setting_is_one_that_there_is(build: list[Manifest]) -> None:
    # Pydantic passes over those that it does not know.
    known = {f"FEED_{name.upper()}" for name in Settings.model_fields}
    for manifest in build:
        if title(manifest).startswith(("ConfigMap feedmesh-", "Secret feedmesh-")):
            settings = {key for key in manifest.get("data", {}) if key.startswith("FEED_")}
            assert settings <= known, title(manifest)
    for pod in pods(build):
        names = {each["name"] for part in pod.containers for each in part.get("env", [])}
        # Feast's are those of features/README.md.
        settings = {name for name in names if name.startswith("FEED_") and "FEED_FEAST" not in name}
        assert settings <= known, pod.owner


def test_images_of_ours_are_those_that_make_images_builds(builds: Builds) -> None:
    built = {images.tag(each) for each in images.IMAGES}
    named = {each["image"] for pod in pods(builds["k3s and jobs"]) for each in pod.containers}
    assert {each for each in named if "feedmesh/" in each} == built


@pytest.mark.parametrize("overlay", ["k3s", "production"])
def test_whoever_a_policy_lets_in_is_there(builds: Builds, overlay: str) -> None:
    assert policies.callers_that_are_missing(builds[overlay]) == []


def test_no_exception_from_a_rule_has_outlived_its_reason(builds: Builds) -> None:
    there = {pod.owner for name in OVERLAYS for pod in pods(builds[name])}
    assert {*policies.WRITABLE_ROOT, *policies.TOKENS, *policies.NOT_PROBED} <= there


# -- secrets ----------------------------------------------------------------------------------


def test_no_file_has_the_value_of_a_secret() -> None:
    files = [*K8S.rglob("*.yaml"), *K8S.rglob("*.yml")]
    assert files
    for file in files:
        # The servers that `make k8s-test` starts hold nothing, and live for minutes.
        if file.is_relative_to(K8S / "overlays/test"):
            continue
        documents = [
            each for each in yaml.safe_load_all(file.read_text()) if isinstance(each, dict)
        ]
        assert policies.secrets_in_files(documents) == [], file


def test_the_file_of_secrets_is_one_that_git_ignores() -> None:
    generated = [
        file.parent / name
        for file in K8S.rglob("kustomization.yaml")
        for generator in yaml.safe_load(file.read_text()).get("secretGenerator", [])
        for name in (*generator.get("envs", []), *generator.get("files", []))
    ]
    assert generated
    for path in generated:
        command = ["git", "check-ignore", "--quiet", str(path)]
        ignored = subprocess.run(command, cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"{path} is not ignored"


def test_the_examples_of_secrets_have_none() -> None:
    examples = [*K8S.rglob("*.example.env"), ROOT / "compose.example.env"]
    assert examples
    for example in examples:
        assert not _LIKE_A_KEY.search(example.read_text()), example


def test_what_looks_like_a_key_is_found() -> None:
    for key in ("0f8e" * 8, "Zq3T9xW1bR7kLm2VnP5sYd8G"):
        assert _LIKE_A_KEY.search(f"FEED_JWT_SECRET={key}"), key


# -- the base ---------------------------------------------------------------------------------


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


def test_a_pod_that_is_called_is_told_apart_from_one_that_is_not_ready(
    base: list[Manifest],
) -> None:
    for pod in pods(base):
        if pod.owner.partition(" ")[2] in SERVICES:
            [container] = pod.containers
            assert {"startupProbe", "readinessProbe"} <= container.keys(), pod.owner
            # Clients learn that a pod goes before it stops to listen.
            pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pause < pod.spec["terminationGracePeriodSeconds"], pod.owner


# -- k3s and production -----------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["k3s", "production"])
def test_the_ingress_leads_to_all_that_clients_call_and_to_nothing_else(
    builds: Builds, overlay: str
) -> None:
    [ingress] = (each for each in builds[overlay] if each["kind"] == "Ingress")
    paths = [
        path
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
        if path["backend"]["service"]["name"] == "gateway"
    ]
    for module in (auth, debug, explain, feed, impressions, likes, ops, posts, uploads, users):
        for route in module.router.routes:
            path = cast("APIRoute", route).path
            is_for_clients = module not in (debug, ops)
            assert _is_led_to(path, paths) is is_for_clients, path


@pytest.mark.parametrize("overlay", ["k3s", "production"])
def test_whose_word_on_addresses_is_taken_is_who_may_call_the_gateway(
    builds: Builds, overlay: str
) -> None:
    [settings] = (
        each["data"]
        for each in builds[overlay]
        if each["kind"] == "ConfigMap" and "FEED_PUBLIC_URL" in each["data"]
    )
    assert ip_network(settings["FORWARDED_ALLOW_IPS"]).is_private
    [policy] = (each["spec"] for each in builds[overlay] if title(each) == "NetworkPolicy gateway")
    assert all(rule.get("from") for rule in policy["ingress"])


# -- production -------------------------------------------------------------------------------


def test_in_production_our_images_are_named_by_digest(production: list[Manifest]) -> None:
    assert policies.images_without_digest(production) == []


def test_in_production_clients_come_by_tls(production: list[Manifest]) -> None:
    assert policies.entries_without_tls(production) == []


def test_in_production_the_mesh_has_no_single_pod_but_the_log_worker(
    production: list[Manifest],
) -> None:
    fewest = {
        each["metadata"]["name"]: each["spec"]["minReplicas"]
        for each in production
        if each["kind"] == "HorizontalPodAutoscaler"
    }
    alone = [
        name
        for each in production
        if each["kind"] == "Deployment" and _is_ours(each)
        if fewest.get(name := each["metadata"]["name"], each["spec"].get("replicas", 1)) < 2
    ]
    assert alone == ["worker-log"]


def test_in_production_the_pods_of_a_deployment_stand_apart(production: list[Manifest]) -> None:
    for pod in pods(each for each in production if each["kind"] == "Deployment" and _is_ours(each)):
        [apart] = pod.spec["affinity"]["podAntiAffinity"][
            "preferredDuringSchedulingIgnoredDuringExecution"
        ]
        [spread] = pod.spec["topologySpreadConstraints"]
        for term, key in (
            (apart["podAffinityTerm"], "kubernetes.io/hostname"),
            (spread, "topology.kubernetes.io/zone"),
        ):
            assert term["topologyKey"] == key, pod.owner
            # Alike for all pods of a Deployment, and for them alone.
            assert "app.kubernetes.io/name" in term["matchLabelKeys"], pod.owner
            assert "app.kubernetes.io/name" in pod.labels, pod.owner


def test_in_production_one_setting_says_how_clients_reach_the_gateway(
    production: list[Manifest],
) -> None:
    [ingress] = (each["spec"] for each in production if each["kind"] == "Ingress")
    [url] = (
        each["data"]["FEED_PUBLIC_URL"]
        for each in production
        if each["kind"] == "ConfigMap" and "FEED_PUBLIC_URL" in each["data"]
    )
    assert url == f"https://{ingress['rules'][0]['host']}"
    assert [ingress["rules"][0]["host"]] == ingress["tls"][0]["hosts"]


def _is_ours(manifest: Manifest) -> bool:
    [container, *_] = manifest["spec"]["template"]["spec"]["containers"]
    return "feedmesh/" in container["image"]


def _is_led_to(path: str, paths: list[Manifest]) -> bool:
    return any(
        path == each["path"]
        or (each["pathType"] == "Prefix" and path.startswith(each["path"].rstrip("/") + "/"))
        for each in paths
    )
