"""compose.yaml is what k3s runs, by the same images, files and names, on one machine."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.settings import Settings
from stack import images
from tests.deploy import policies
from tests.deploy.builds import ROOT, Builds
from tests.deploy.policies import pods

Service = dict[str, Any]

# In k8s/, where they have another name, or are a part of another pod.
OTHER_NAMES = {"dgraph": "dgraph-alpha", "triton-repository": "repository"}
# Only here: one gives volumes to their users, the other is for what is done by hand.
ONLY_HERE = {"owners", "jobs"}
# What is an overlay's to say in k8s/, too.
OWN_SETTINGS = {
    *("FEED_SQL_URL", "FEED_JWT_SECRET", "FEED_PUBLIC_URL", "FEED_MEDIA_URL", "FEED_GRAPH_URL"),
    "FEED_REGISTRY_URL",
}
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):\?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return read


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    read: dict[str, Service] = compose["services"]
    return read


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Those of k3s' pods, by name, each with its pod's user."""
    builds = Builds(tmp_path_factory.mktemp("compose") / "k8s")
    return {
        container["name"]: {**container, "user": pod.spec["securityContext"]["runAsUser"]}
        for pod in pods(builds["k3s"])
        for container in pod.containers
    }


@pytest.fixture(scope="module")
def ours(services: dict[str, Service]) -> dict[str, Service]:
    return {name: each for name, each in services.items() if "feedmesh/" in each["image"]}


def test_it_has_all_that_k3s_has(
    services: dict[str, Service], containers: dict[str, dict[str, Any]]
) -> None:
    # Run by the container itself here, or by hand.
    parts = {"format", "first-sql", "feast-compact"}
    assert {OTHER_NAMES.get(each, each) for each in services} - ONLY_HERE == (
        containers.keys() - parts
    )


def test_images_users_and_memory_are_those_of_k3s(
    services: dict[str, Service], containers: dict[str, dict[str, Any]]
) -> None:
    for name in services.keys() - ONLY_HERE:
        service, container = services[name], containers[OTHER_NAMES.get(name, name)]
        assert service["image"] == container["image"], name
        assert service["user"] == f"{container['user']}:{container['user']}", name
        limit = container["resources"]["limits"]["memory"]
        assert f"{service['mem_limit'].upper()}i" == limit, name


def test_every_image_is_pinned(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert policies.is_pinned(service["image"]), name


def test_images_of_ours_are_those_that_make_images_builds(ours: dict[str, Service]) -> None:
    assert {each["image"] for each in ours.values()} == {images.tag(each) for each in images.IMAGES}


def test_no_container_may_do_more_than_it_must(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "pid", "ipc", "devices"}, name
        if name == "owners":
            assert (service["cap_add"], service["network_mode"]) == (["CHOWN"], "none")
        else:
            assert "cap_add" not in service, name
            assert not service["user"].startswith("0:"), name


def test_the_mesh_has_the_settings_of_its_pods(
    ours: dict[str, Service], containers: dict[str, dict[str, Any]]
) -> None:
    known = {f"FEED_{name.upper()}" for name in Settings.model_fields}
    for name, service in ours.items():
        if any("configMapRef" in each for each in containers.get(name, {}).get("envFrom", [])):
            assert service["env_file"] == ["k8s/base/settings.env"], name
            own = {each for each in service["environment"] if each.startswith("FEED_")}
            assert own == OWN_SETTINGS <= known, name


def test_environments_of_what_is_not_the_mesh_are_those_of_k3s(
    services: dict[str, Service], containers: dict[str, dict[str, Any]]
) -> None:
    for name in services.keys() - ONLY_HERE:
        service, container = services[name], containers[OTHER_NAMES.get(name, name)]
        if "env_file" not in service:
            wanted = {
                each["name"]: each["value"] for each in container.get("env", []) if "value" in each
            }
            given = service.get("environment", {})
            assert wanted.items() <= given.items(), name


def test_what_servers_are_told_is_what_k3s_tells_them(
    services: dict[str, Service], containers: dict[str, dict[str, Any]]
) -> None:
    for name in services.keys() - ONLY_HERE:
        service, container = services[name], containers[OTHER_NAMES.get(name, name)]
        told = " ".join([*service.get("entrypoint", []), *service.get("command", [])])
        for word in (*container.get("command", []), *container.get("args", [])):
            # Pods are known by other names than containers.
            if "$(" not in word and not re.search(
                r"\b(pd|dgraph-zero)-0\.|/first/|cluster\.yaml", word
            ):
                assert word in told, (name, word)


def test_every_host_that_is_named_is_there(
    services: dict[str, Service], ours: dict[str, Service]
) -> None:
    settings = dict(
        line.split("=", 1) for line in (ROOT / "k8s/base/settings.env").read_text().splitlines()
    )
    for name, service in ours.items():
        values = {**(settings if "env_file" in service else {}), **service.get("environment", {})}
        for variable, value in values.items():
            for host in re.findall(r"(?:(?:^|/|@)(?:/)?)([a-z][a-z-]*):\d+", str(value)):
                assert host in services, (name, variable)
    scraped = yaml.safe_load((ROOT / "k8s/infra/prometheus/compose.yaml").read_text())
    [[static]] = (each["static_configs"] for each in scraped["scrape_configs"])
    targets = {each.partition(":")[0] for each in static["targets"]}
    workers = {each for each in services if each.startswith("worker-")}
    assert workers | {"gateway"} <= targets <= services.keys()


def test_every_file_and_volume_that_is_mounted_is_there(
    compose: dict[str, Any], services: dict[str, Service]
) -> None:
    used = set()
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), mount
                assert rest.endswith(":ro"), mount
            else:
                used.add(source)
        for file in service.get("env_file", []):
            assert (ROOT / file).exists(), name
    assert used == compose["volumes"].keys()


def test_every_configuration_that_is_named_is_mounted(services: dict[str, Service]) -> None:
    for name, service in services.items():
        told = " ".join(
            map(str, (*service.get("command", []), *service.get("environment", {}).values()))
        )
        mounts = dict(each.split(":")[1::-1] for each in service.get("volumes", []))
        for file in re.findall(r"/config/([\w.]+)", told):
            assert (ROOT / Path(mounts["/config"]) / file).exists(), (name, file)


def test_volumes_are_given_to_those_who_write_them(services: dict[str, Service]) -> None:
    script = services["owners"]["command"][-1].replace("\\\n", " ")
    owners = {
        volume: owner
        for owner, volumes in re.findall(r"chown (\S+) (.+)", script)
        for volume in volumes.split()
    }
    mounted = {each.partition(":")[0] for each in services["owners"]["volumes"]}
    assert owners.keys() == mounted
    for name in services.keys() - {"owners"}:
        for mount in services[name].get("volumes", []):
            volume, _, rest = mount.partition(":")
            if not volume.startswith("."):
                assert owners[volume] == services[name]["user"], (name, volume)
                assert "owners" in _before(services, name), (name, rest)


def test_nothing_is_published_but_on_loopback(services: dict[str, Service]) -> None:
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert published == {
        "gateway": ["127.0.0.1:8080:8080"],
        "minio": ["127.0.0.1:9000:9000"],
        "jaeger": ["127.0.0.1:16686:16686"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_whoever_is_waited_for_can_be(services: dict[str, Service]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            is_healthy = how["condition"] == "service_healthy"
            assert is_healthy == ("healthcheck" in services[other]), (name, other)
        assert name not in _before(services, name)


def test_what_runs_is_asked_how_it_is(services: dict[str, Service]) -> None:
    ends = {"prepare", "jobs", "owners", "triton-repository"}
    # Its image has no program to ask with.
    mute = {"otel-collector"}
    asked = {name for name, each in services.items() if "healthcheck" in each}
    assert asked == services.keys() - ends - mute


def test_passwords_come_from_a_file_that_git_ignores() -> None:
    wanted = set(_VARIABLE.findall((ROOT / "compose.yaml").read_text()))
    example = (ROOT / "compose.example.env").read_text()
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == wanted
    # Settings are read from a file of that name, too.
    assert not any(each.startswith("FEED_") for each in wanted)
    ignored = subprocess.run(["git", "check-ignore", "--quiet", ".env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def _before(services: dict[str, Service], name: str) -> set[str]:
    """All that the service waits for, by way of others, too."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for other in services[waiting.pop()].get("depends_on", {}):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found
