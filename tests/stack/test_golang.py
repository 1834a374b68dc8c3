"""What Go calls the programs that it builds."""

import pytest

from stack.golang import program


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("github.com/coredns/coredns", "coredns"),
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("sigs.k8s.io/kustomize/kustomize/v5", "kustomize"),
    ],
)
def test_a_program_is_called_by_its_path_without_the_major_version(package: str, name: str) -> None:
    assert program(package) == name
