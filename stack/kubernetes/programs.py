"""Kubernetes' programs, and what a node needs beside them, from the Go module proxy.

`python -m stack.kubernetes.programs` installs a control plane and kwok, for tests that need them.
"""

import asyncio
import sys
from pathlib import Path

from mesh.errors import FeedError
from mesh.settings import Settings
from stack import golang
from stack.place import Place

VERSION = "1.34.4"
# Its parts are modules of their own, which its go.mod looks for beside itself.
_PARTS = (
    *("api", "apiextensions-apiserver", "apimachinery", "apiserver", "cli-runtime", "client-go"),
    *("cloud-provider", "cluster-bootstrap", "code-generator", "component-base"),
    *("component-helpers", "controller-manager", "cri-api", "cri-client", "csi-translation-lib"),
    *("dynamic-resource-allocation", "endpointslice", "externaljwt", "kms", "kube-aggregator"),
    *("kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet", "metrics"),
    *("mount-utils", "pod-security-admission", "sample-apiserver"),
)
_GO_MOD = "\n".join(
    (
        "module feedmesh/kubernetes",
        "go 1.24.0",
        "godebug default=go1.24",
        f"require k8s.io/kubernetes v{VERSION}",
        *(f"replace k8s.io/{part} => k8s.io/{part} v0.{VERSION[2:]}" for part in _PARTS),
    )
)
_CONTROL = ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_NODE = ("kubelet", "kube-proxy")
# The programs say nothing of their version unless they are told it.
_NAMED = {
    "gitVersion": f"v{VERSION}",
    "gitMajor": "1",
    "gitMinor": VERSION.split(".")[1],
    "gitTreeState": "archive",
    "buildDate": "2026-01-01T00:00:00Z",
}
_ETCD = "go.etcd.io/etcd/server/v3"
_ETCD_GO_MOD = f"module feedmesh/etcd\ngo 1.24.0\nrequire {_ETCD} v3.6.16"
_COREDNS = ("github.com/coredns/coredns", "v1.15.0")
# Refuses what network policies do not allow, as k3s does by the same library.
_POLICIES = ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", "v2.1.0")
_KWOK = ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0")


async def control_plane(place: Place) -> dict[str, Path]:
    """kubectl, etcd, the API server, the controllers and the scheduler, by name.

    Raises:
        FailedPrecondition: There is no Go, or one does not build.
    """
    # One after another: each build takes all processors by itself.
    kubernetes = await _kubernetes(place)
    etcd = await golang.built_together(place, "etcd", [_ETCD], _ETCD_GO_MOD)
    return {
        **{name: kubernetes / name for name in _CONTROL},
        "etcd": etcd / golang.program(_ETCD),
    }


async def kwok(place: Place) -> Path:
    """What pretends to be nodes; raises FailedPrecondition as `control_plane` does."""
    return await golang.installed(place, *_KWOK)


async def node(place: Place) -> dict[str, Path]:
    """kubelet, kube-proxy, CoreDNS and kube-router, by name.

    Raises:
        FailedPrecondition: There is no Go, or one does not build.
    """
    kubernetes = await _kubernetes(place)
    coredns = await golang.installed(place, *_COREDNS)
    policies = await golang.installed(place, *_POLICIES)
    return {
        **{name: kubernetes / name for name in _NODE},
        **{"coredns": coredns, "kube-router": policies},
    }


async def _kubernetes(place: Place) -> Path:
    named = " ".join(f"-X k8s.io/component-base/version.{key}={_NAMED[key]}" for key in _NAMED)
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in (*_CONTROL, *_NODE)]
    return await golang.built_together(place, "kubernetes", packages, _GO_MOD, f"-s -w {named}")


async def _install(place: Place) -> None:
    await control_plane(place)
    await kwok(place)


def main() -> None:
    """Installs a control plane and kwok; takes minutes the first time."""
    try:
        asyncio.run(_install(Place.of(Settings())))
    except FeedError as error:
        sys.exit(f"Kubernetes cannot be had: {error}")


if __name__ == "__main__":
    main()
