"""The node's own network, so that what it does to iptables is done nowhere else."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import FailedPrecondition

NAME = "feedmesh-k8s"
# Of the two ends of the wire: this machine, where the stack listens, and the node.
HOST = "10.203.0.1"
NODE = "10.203.0.2"
PODS = "10.244.0.0/24"
# On this machine, where k8s/overlays/test expects what collects traces.
COLLECTOR_PORT = 14019
WITHIN = ("nsenter", f"--net=/run/netns/{NAME}")
_WIRE = "feedmesh-k8s0"
_ENDED_WITHIN_S = 10.0


@contextmanager
def network() -> Iterator[None]:
    """Within the block, there is the namespace; pods and this machine reach each other.

    Pods reach nothing else. What a killed run has left of it is removed first.

    Raises:
        FailedPrecondition: It cannot be made; the detail has the command's complaint.
    """
    _remove()
    for command in (
        f"ip netns add {NAME}",
        f"ip link add {_WIRE} type veth peer name eth0 netns {NAME}",
        f"ip addr add {HOST}/30 dev {_WIRE}",
        f"ip link set {_WIRE} up",
        f"ip -n {NAME} link set lo up",
        f"ip -n {NAME} addr add {NODE}/30 dev eth0",
        f"ip -n {NAME} link set eth0 up",
        f"ip -n {NAME} route add default via {HOST}",
        f"ip route add {PODS} via {NODE}",
        f"ip netns exec {NAME} sysctl -qw net.ipv4.ip_forward=1",
    ):
        _run(command)
    try:
        yield
    finally:
        _remove()


def _remove() -> None:
    if not Path("/run/netns", NAME).exists():
        return
    until = time.monotonic() + _ENDED_WITHIN_S
    while pids := _run(f"ip netns pids {NAME}").split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > until:
            raise FailedPrecondition(f"processes {', '.join(pids)} of {NAME} do not end")
        time.sleep(0.1)
    # The wire goes with its other end.
    _run(f"ip netns delete {NAME}")


def _run(command: str) -> str:
    words = command.split()
    if shutil.which(words[0]) is None:
        raise FailedPrecondition(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise FailedPrecondition(f"{command}: {done.stderr.strip()}")
    return done.stdout
