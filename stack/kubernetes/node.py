"""The part of a cluster that runs pods: containerd, kubelet, kube-proxy, DNS, network policies.

It needs root, and a network of its own (`network`).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import FailedPrecondition
from stack.daemon import Server, runs
from stack.kubernetes.certificates import Authority
from stack.kubernetes.control_plane import DOMAIN, SERVICES, ControlPlane
from stack.kubernetes.network import NODE, PODS, WITHIN
from stack.kubernetes.programs import VERSION

NAME = "feedmesh"
# What keeps a pod's namespaces: an image that this machine makes (`images`).
PAUSE_IMAGE = "localhost/pause:1"
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP = "feedmesh-k8s"
_PLUGINS = Path("/usr/lib/cni")
_MAX_PODS = 60


@dataclass(frozen=True, slots=True)
class Node:
    """The one node.

    Args:
        programs: As `programs.node` gives them.
        folder: Pods, and all configuration; containerd's socket too, so a short path.
        images: What containerd keeps; another run may find it there.
        control: Whose node it is.
    """

    programs: Mapping[str, Path]
    folder: Path
    images: Path
    control: ControlPlane

    @property
    def socket(self) -> Path:
        """Of containerd."""
        return self.folder / "containerd.sock"

    def prepare(self, authority: Authority) -> None:
        """Writes all configuration; to be called before the servers start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        authority.issue("node", f"system:node:{NAME}", "system:nodes")
        authority.issue("proxy", "system:kube-proxy")
        for user in ("node", "proxy"):
            authority.kubeconfig(user, self.control.url)
        _make_cgroup()
        (self.folder / "containerd.toml").write_text(self._containerd())
        (self.folder / "cni").mkdir()
        # Point to point rather than a bridge: so all traffic between pods is forwarded, where
        # iptables sees it.
        network = {
            "cniVersion": "1.0.0",
            "name": NAME,
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self.folder / "addresses"),
                        "ranges": [[{"subnet": PODS}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self.folder / "cni" / "10-feedmesh.conflist").write_text(json.dumps(network, indent=2))
        (self.folder / "resolv.conf").write_text(f"nameserver {NODE}\n")
        self._write("kubelet.json", self._kubelet(authority.folder))
        self._write("proxy.json", self._proxy(authority.folder))
        (self.folder / "Corefile").write_text(f""".:53 {{
    bind {NODE}
    errors
    ready {NODE}:8181
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {authority.folder / "admin.kubeconfig"}
    }}
    # Clients are to learn of new pods within seconds.
    cache 5
}}
""")

    def servers(self) -> dict[str, Server]:
        """What it consists of, by name."""
        pki = self.control.folder / "pki"
        ask = self.control.kubectl()

        async def has_socket() -> bool:
            return self.socket.exists()

        async def is_ready() -> bool:
            ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
            return await ask("get", "node", NAME, "--output", ready, within_s=5) == "True"

        parts = {
            "containerd": (
                ["containerd", "--config", str(self.folder / "containerd.toml")],
                has_socket,
            ),
            "kubelet": (
                [
                    *(str(self.programs["kubelet"]), "--config", str(self.folder / "kubelet.json")),
                    *("--kubeconfig", str(pki / "node.kubeconfig"), "--hostname-override", NAME),
                    *("--node-ip", NODE, "--root-dir", str(self.folder / "kubelet")),
                    *("--cert-dir", str(self.folder / "kubelet-pki")),
                ],
                is_ready,
            ),
            "proxy": (
                [str(self.programs["kube-proxy"]), "--config", str(self.folder / "proxy.json")],
                runs,
            ),
            "dns": (
                [str(self.programs["coredns"]), "-conf", str(self.folder / "Corefile")],
                runs,
            ),
            "policies": (
                [
                    *(str(self.programs["kube-router"]), "--hostname-override", NAME),
                    *("--kubeconfig", str(pki / "admin.kubeconfig")),
                    *("--run-firewall=true", "--run-router=false", "--run-service-proxy=false"),
                    *("--run-loadbalancer=false", "--service-cluster-ip-range", SERVICES),
                    *("--health-port", "0", "--metrics-port", "0"),
                ],
                runs,
            ),
        }
        after = {
            "containerd": [],
            "kubelet": ["containerd", "controllers"],
            **{name: ["apiserver", "kubelet"] for name in ("proxy", "dns", "policies")},
        }
        return {
            name: Server(
                name=name,
                version=VERSION if name in ("kubelet", "proxy") else "",
                command=[*WITHIN, *command],
                url="",
                ports=[],
                is_healthy=is_healthy,
                # It looks for its own name among the nodes.
                env={"NODE_NAME": NAME},
                after=after[name],
            )
            for name, (command, is_healthy) in parts.items()
        }

    def remove_mounts(self) -> None:
        """What kubelet and containerd leave mounted; to be called when both have ended."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        below = [mount for mount in mounts if mount.startswith(f"{self.folder}/")]
        for mount in sorted(below, reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)  # noqa: S603, S607
        for hierarchy in (_CGROUPS, *_CGROUPS.iterdir()):
            for group, _, _ in os.walk(hierarchy / _CGROUP, topdown=False):
                with suppress(OSError):
                    Path(group).rmdir()

    def _containerd(self) -> str:
        without = ("btrfs", "devmapper", "zfs")
        disabled = json.dumps([f"io.containerd.snapshotter.v1.{name}" for name in without])
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "{self.images}"
state = "{self.folder / "state"}"
disabled_plugins = {disabled}
[grpc]
  address = "{self.socket}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  # Where root may not make a process dearer to the kernel than its parent is.
  restrict_oom_score_adj = true
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{cri}.containerd.runtimes.runc.options]
        SystemdCgroup = false
  [{cri}.cni]
    bin_dir = "{_PLUGINS}"
    conf_dir = "{self.folder / "cni"}"
"""

    def _kubelet(self, pki: Path) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{_CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [NODE],
            "clusterDomain": DOMAIN,
            "resolvConf": str(self.folder / "resolv.conf"),
            "maxPods": _MAX_PODS,
            # The disk is the machine's, and may be fuller than a node's would be.
            "evictionHard": {
                "memory.available": "100Mi",
                **dict.fromkeys(("nodefs.available", "imagefs.available"), "1%"),
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "podLogsDir": str(self.folder / "pod-logs"),
        }

    def _proxy(self, pki: Path) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": PODS,
            "clientConnection": {"kubeconfig": str(pki / "proxy.kubeconfig")},
            "hostnameOverride": NAME,
            # The kernel's limits are the machine's.
            "conntrack": {
                **dict.fromkeys(("maxPerCore", "min"), 0),
                **dict.fromkeys(("tcpCloseWaitTimeout", "tcpEstablishedTimeout"), "0s"),
            },
            "healthzBindAddress": f"{NODE}:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        }

    def _write(self, name: str, content: dict[str, object]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=2))


def require() -> None:
    """Raises FailedPrecondition where a node cannot be had."""
    if os.geteuid() != 0:
        raise FailedPrecondition("SKIPPED: a node needs root")
    needed = ("dockerd", "containerd", "runc", "debootstrap", "iptables", "ipset", "conntrack")
    if missing := [name for name in needed if shutil.which(name) is None]:
        raise FailedPrecondition(f"SKIPPED: not installed: {', '.join(missing)}")


def _make_cgroup() -> None:
    """All that pods use is counted below one group: in each hierarchy, or in the only one."""
    if (_CGROUPS / "cgroup.controllers").exists():
        (_CGROUPS / _CGROUP).mkdir(exist_ok=True)
        return
    for hierarchy in _CGROUPS.iterdir():
        if not hierarchy.is_dir() or hierarchy.is_symlink():
            continue
        group = hierarchy / _CGROUP
        group.mkdir(exist_ok=True)
        # A new group may use no processor at all until it is told which.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists():
                (group / name).write_text((hierarchy / name).read_text())
