"""`make run`: the whole system on its embedded defaults.

Processes: the launcher, Valkey, the vector engine, the mesh (gateway and the four services), the
workers.
"""

from local.children import Child
from local.embedded import child_env, started
from local.launcher import main
from mesh.settings import Settings


def processes(settings: Settings) -> dict[str, Child]:
    """The mesh and the workers."""
    grace_s = settings.shutdown_grace_s + 5
    # The mesh's metrics are the gateway's to tell.
    mesh = Child("mesh", ["local.serve"], grace_s, child_env(settings, metrics_port=0))
    workers = Child("workers", ["workers"], grace_s, child_env(settings, settings.metrics_port))
    return {"mesh": mesh, "workers": workers}


if __name__ == "__main__":
    main(Settings(), started, processes)
