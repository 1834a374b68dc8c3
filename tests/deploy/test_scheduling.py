"""The overlays in a real control plane, on nodes that kwok pretends: where pods go."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mesh.errors import Unavailable
from mesh.settings import Settings
from stack import stack
from stack.daemon import Server
from stack.kubernetes import programs
from stack.kubernetes.control_plane import ControlPlane
from stack.kubernetes.kubectl import Kubectl
from stack.place import Place
from stack.temporary import free_ports
from tests.deploy.builds import Builds
from tests.deploy.policies import Manifest
from tests.eventually import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
NAMESPACE = "feedmesh"
STAGES = Path(__file__).with_name("stages.yaml")
ZONES, NODES_A_ZONE = 3, 2
LARGE = {"cpu": "16", "memory": "64Gi", "pods": "110"}
# What docs/k3s.md asks for.
SMALL = {"cpu": "4", "memory": "16Gi", "pods": "110"}


@dataclass
class Fleet:
    """The cluster, with production applied."""

    kubectl: Kubectl
    zones: dict[str, str]

    async def placed(self) -> dict[str, list[str]]:
        """The nodes of each Deployment's running pods, by the Deployment's name."""
        nodes: dict[str, list[str]] = defaultdict(list)
        for pod in (await self.kubectl.get("pods"))["items"]:
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
                nodes[pod["metadata"]["labels"]["app.kubernetes.io/name"]].append(
                    pod["spec"]["nodeName"]
                )
        return nodes


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("manifests") / "k8s")


@pytest.fixture(scope="module")
def production(builds: Builds) -> list[Manifest]:
    return builds["production"]


@pytest.fixture(scope="module")
async def fleet(production: list[Manifest]) -> AsyncIterator[Fleet]:
    zones = {
        f"node-{zone}-{number}": f"zone-{zone}"
        for zone in range(ZONES)
        for number in range(NODES_A_ZONE)
    }
    async with applied(production, zones, LARGE) as fleet:
        yield fleet


@asynccontextmanager
async def applied(
    manifests: list[Manifest], zones: dict[str, str], size: dict[str, str]
) -> AsyncIterator[Fleet]:
    """A cluster of pretended nodes, with the manifests applied.

    Args:
        manifests: What `kubectl apply` is given.
        zones: The nodes' names, and the zone of each.
        size: What each node has.
    """
    cache = Settings().stack_cache.expanduser()
    with tempfile.TemporaryDirectory(prefix="feed-") as folder:
        place = Place("127.0.0.1", 0, Path(folder), cache)
        found = await programs.control_plane(place)
        port = free_ports("127.0.0.1")
        control = ControlPlane(found, Path(folder) / "control", "127.0.0.1", port)
        control.prepare()
        kubeconfig = control.folder / "pki" / "admin.kubeconfig"
        kwok = Server(
            name="kwok",
            version="",
            command=[
                *(str(await programs.kwok(place)), "--kubeconfig", str(kubeconfig)),
                *("--manage-all-nodes=true", "--node-lease-duration-seconds=40"),
                *("--config", str(STAGES), "--server-address", ""),
            ],
            url="",
            ports=[],
            after=["controllers"],
        )
        running = stack.daemons(place, {**control.servers(), "kwok": kwok})
        try:
            await stack.start(running)
            kubectl = control.kubectl(NAMESPACE)
            await _apply(kubectl, [_node(name, zone, size) for name, zone in zones.items()])
            await _apply(kubectl, [each for each in manifests if each["kind"] == "Namespace"])
            await _apply(kubectl, [*manifests, *_volumes(manifests)])
            yield Fleet(kubectl, zones)
        finally:
            await stack.stop(running)


async def _apply(kubectl: Kubectl, manifests: list[Manifest]) -> None:
    given = yaml.safe_dump_all(manifests)
    await kubectl("apply", "--server-side", "--filename", "-", given=given)


def _node(name: str, zone: str, size: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone,
            },
        },
        "status": {"capacity": size, "allocatable": size},
    }


def _volumes(manifests: list[Manifest]) -> list[Manifest]:
    """A volume for each claim, which a cluster's storage classes would make."""
    claims = [each for each in manifests if each["kind"] == "PersistentVolumeClaim"]
    for each in manifests:
        if each["kind"] == "StatefulSet":
            for claim in each["spec"].get("volumeClaimTemplates", []):
                name = f"{claim['metadata']['name']}-{each['metadata']['name']}-0"
                claims.append({**claim, "metadata": {"name": name}})
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"of-{claim['metadata']['name']}"},
            "spec": {
                "capacity": claim["spec"]["resources"]["requests"],
                "accessModes": claim["spec"]["accessModes"],
                "storageClassName": claim["spec"].get("storageClassName", ""),
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": NAMESPACE, "name": claim["metadata"]["name"]},
            },
        }
        for claim in claims
    ]


def _fewest(production: list[Manifest]) -> dict[str, int]:
    """How many pods each workload has at least."""
    fewest = {
        each["metadata"]["name"]: each["spec"].get("replicas", 1)
        for each in production
        if each["kind"] in ("Deployment", "StatefulSet")
    }
    for each in production:
        if each["kind"] == "HorizontalPodAutoscaler":
            fewest[each["spec"]["scaleTargetRef"]["name"]] = each["spec"]["minReplicas"]
    return fewest


async def _all_run(fleet: Fleet, manifests: list[Manifest]) -> None:
    wanted = _fewest(manifests)

    async def all_run() -> bool:
        assert {name: len(nodes) for name, nodes in (await fleet.placed()).items()} == wanted
        return True

    await eventually(all_run, within_s=120, every_s=0.5)


async def test_the_api_server_takes_all_and_the_scheduler_finds_room(
    fleet: Fleet, production: list[Manifest]
) -> None:
    await _all_run(fleet, production)


async def test_k3s_fits_on_one_small_node(builds: Builds) -> None:
    async with applied(builds["k3s"], {"node": "zone"}, SMALL) as fleet:
        await _all_run(fleet, builds["k3s"])


async def test_pods_of_a_service_stand_on_different_nodes_and_zones(
    fleet: Fleet, production: list[Manifest]
) -> None:
    placed = await fleet.placed()
    apart = [name for name, count in _fewest(production).items() if count > 1]
    assert apart
    for name in apart:
        nodes = placed[name]
        assert len(set(nodes)) == len(nodes), f"{name}: {nodes}"
        zones = Counter(fleet.zones[node] for node in nodes)
        assert len(zones) == min(ZONES, len(nodes)), f"{name}: {zones}"


async def test_a_node_may_be_drained_and_no_service_falls_below_its_budget(
    fleet: Fleet, production: list[Manifest]
) -> None:
    wanted = _fewest(production)
    node = next(iter(fleet.zones))
    moved = {name for name, nodes in (await fleet.placed()).items() if node in nodes}
    assert moved
    # Evicts, and so asks each budget; without room elsewhere it would not end.
    await fleet.kubectl(
        *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"),
        within_s=150,
    )

    async def all_elsewhere() -> bool:
        placed = await fleet.placed()
        assert all(node not in nodes for nodes in placed.values())
        assert {name: len(nodes) for name, nodes in placed.items()} == wanted
        return True

    await eventually(all_elsewhere, within_s=60, every_s=0.5)


async def test_what_breaks_pod_security_is_refused(
    fleet: Fleet, production: list[Manifest]
) -> None:
    deployment = next(
        each for each in production
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "gateway")
    )  # fmt: skip
    template = deepcopy(deployment["spec"]["template"])
    template["spec"]["containers"][0]["securityContext"] = {"runAsUser": 0}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    with pytest.raises(Unavailable, match="violates PodSecurity"):
        await _apply(fleet.kubectl, [pod])
