"""The part of a cluster that decides: etcd, the API server, the controllers, the scheduler.

It needs no rights of its own: with kwok in a kubelet's place it runs anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import Unavailable
from stack.daemon import Server
from stack.kubernetes.certificates import Authority
from stack.kubernetes.kubectl import Kubectl
from stack.kubernetes.programs import VERSION

SERVICES = "10.96.0.0/16"
DOMAIN = "cluster.local"
# The API server's own Service is the first of its range.
_API_SERVICE = "10.96.0.1"
_MASTERS = "system:masters"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Where it is.

    Args:
        programs: As `programs.control_plane` gives them.
        folder: Certificates and etcd's data.
        address: What it listens on.
        port: The API server's; etcd has the two after it.
        within: A command that runs another one elsewhere, in a network namespace say.
    """

    programs: Mapping[str, Path]
    folder: Path
    address: str
    port: int
    within: Sequence[str] = ()

    @property
    def url(self) -> str:
        """Of the API server."""
        return f"https://{self.address}:{self.port}"

    def kubectl(self, namespace: str = "default") -> Kubectl:
        """In the name of the cluster's master."""
        admin = self.folder / "pki" / "admin.kubeconfig"
        return Kubectl(self.programs["kubectl"], admin, namespace)

    def prepare(self) -> Authority:
        """Makes the certificates; to be called before the servers start."""
        authority = Authority(self.folder / "pki")
        hosts = (
            *(self.address, _API_SERVICE, "127.0.0.1", "localhost"),
            *("kubernetes", "kubernetes.default", "kubernetes.default.svc"),
            f"kubernetes.default.svc.{DOMAIN}",
        )
        authority.issue("apiserver", "kube-apiserver", hosts=hosts)
        authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", _MASTERS)
        authority.issue("admin", "admin", _MASTERS)
        authority.kubeconfig("admin", self.url)
        for name in ("kube-controller-manager", "kube-scheduler"):
            authority.issue(name, f"system:{name}")
            authority.kubeconfig(name, self.url)
        return authority

    def servers(self) -> dict[str, Server]:
        """What it consists of, by name."""
        pki = self.folder / "pki"
        etcd, peer = (f"http://127.0.0.1:{self.port + n}" for n in (1, 2))
        ask = self.kubectl()

        async def answers() -> bool:
            return await ask("get", "--raw", "/readyz", within_s=5) == "ok"

        async def has_accounts() -> bool:
            # The controllers work when the first of their works is there.
            try:
                return bool(await ask("get", "serviceaccount", "default", within_s=5))
            except Unavailable:
                return False

        def command(name: str, *options: str) -> list[str]:
            return [*self.within, str(self.programs[name]), *options]

        return {
            "etcd": Server(
                name="etcd",
                version="3.6",
                command=command(
                    *("etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync"),
                    *("--listen-client-urls", etcd, "--advertise-client-urls", etcd),
                    *("--listen-peer-urls", peer, "--log-level", "warn"),
                ),
                url=etcd,
                ports=[],
            ),
            "apiserver": Server(
                name="apiserver",
                version=VERSION,
                command=command(
                    *("kube-apiserver", "--etcd-servers", etcd),
                    *("--bind-address", self.address, "--advertise-address", self.address),
                    *("--secure-port", str(self.port), "--cert-dir", str(self.folder / "run")),
                    *("--tls-cert-file", str(pki / "apiserver.crt")),
                    *("--tls-private-key-file", str(pki / "apiserver.key")),
                    *("--client-ca-file", str(pki / "ca.crt")),
                    *("--service-account-key-file", str(pki / "accounts.pub")),
                    *("--service-account-signing-key-file", str(pki / "accounts.key")),
                    *("--service-account-issuer", f"https://kubernetes.default.svc.{DOMAIN}"),
                    *("--kubelet-client-certificate", str(pki / "apiserver-kubelet.crt")),
                    *("--kubelet-client-key", str(pki / "apiserver-kubelet.key")),
                    *("--kubelet-preferred-address-types", "InternalIP"),
                    *("--authorization-mode", "Node,RBAC"),
                    *("--enable-admission-plugins", "NodeRestriction"),
                    *("--service-cluster-ip-range", SERVICES),
                ),
                url=self.url,
                ports=[],
                is_healthy=answers,
                after=["etcd"],
            ),
            "controllers": Server(
                name="controllers",
                version=VERSION,
                command=command(
                    "kube-controller-manager",
                    *("--kubeconfig", str(pki / "kube-controller-manager.kubeconfig")),
                    *("--service-account-private-key-file", str(pki / "accounts.key")),
                    *("--root-ca-file", str(pki / "ca.crt"), "--use-service-account-credentials"),
                    *("--leader-elect=false", "--secure-port=0"),
                ),
                url="",
                ports=[],
                is_healthy=has_accounts,
                after=["apiserver"],
            ),
            "scheduler": Server(
                name="scheduler",
                version=VERSION,
                command=command(
                    *("kube-scheduler", "--leader-elect=false", "--secure-port=0"),
                    *("--kubeconfig", str(pki / "kube-scheduler.kubeconfig")),
                ),
                url="",
                ports=[],
                after=["apiserver"],
            ),
        }
