"""What kustomize makes of k8s/, on a copy that has what a user brings."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from mesh.settings import Settings
from stack.kubernetes import kustomize
from tests.deploy.policies import Manifest

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(each.parent.name for each in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(each.parent.name for each in K8S.glob("components/*/kustomization.yaml"))
_AND_JOBS = " and jobs"
# The base has no images and no Secret: this is the least that an overlay gives it.
_LEAST = {
    "resources": ["../base"],
    "images": [
        {"name": f"feedmesh/{name}", "newTag": "0.1.0"}
        for name in (
            *("gateway", "candidate-svc", "filter-svc", "ranker-svc", "hydrator-svc"),
            *("workers", "jobs"),
        )
    ],
    "secretGenerator": [{"name": "feedmesh", "literals": ["FEED_JWT_SECRET=test"]}],
}


@dataclass
class Builds:
    """A copy of k8s/ in which each example of secrets is used as if it were real.

    Args:
        folder: Where the copy is made.
    """

    folder: Path
    _built: dict[str, list[Manifest]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(K8S, self.folder, ignore=shutil.ignore_patterns("secrets.env"))
        for example in self.folder.rglob("*.example.env"):
            shutil.copy(example, example.with_name(example.name.replace(".example", "")))

    def __getitem__(self, name: str) -> list[Manifest]:
        """The manifests of "base", of an overlay, or of "production with" a component.

        "k3s and jobs" has also those of k8s/jobs, which are created by hand.
        """
        if name.endswith(_AND_JOBS):
            return [*self[name.removesuffix(_AND_JOBS)], *jobs()]
        if name not in self._built:
            overlay, _, component = name.partition(" with ")
            if component:
                folder = self._written(
                    {
                        "resources": [f"../overlays/{overlay}"],
                        "components": [f"../components/{component}"],
                    }
                )
            elif name == "base":
                folder = self._written(_LEAST)
            else:
                folder = self.folder / "overlays" / overlay
            self._built[name] = _built(folder)
        return self._built[name]

    def _written(self, kustomization: Manifest) -> Path:
        folder = self.folder / "under-test"
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return folder


def jobs() -> list[Manifest]:
    """Those of k8s/jobs."""
    return [yaml.safe_load(file.read_text()) for file in sorted(K8S.glob("jobs/*.yaml"))]


def _built(folder: Path) -> list[Manifest]:
    command = kustomize.command(Settings().stack_cache.expanduser())
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed; `make manifests` installs one")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]
