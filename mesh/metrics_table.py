"""The table of all metrics, for docs/metrics.md (`make docs`)."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from mesh import metrics

ROOT = Path(__file__).parent.parent
_PACKAGES = (
    "gateway", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc", "workers", "stores",
    "mesh",
)  # fmt: skip
# By the end of the name; everything else is counted.
_UNITS = {"seconds": "s", "bytes": "bytes", "recall": "share of 1", "state": "", "info": ""}

_HEAD = """\
# Metrics

The gateway serves them at `/metrics`, every other process at FEED_METRICS_PORT, as OpenMetrics. A
request whose trace is sampled leaves its `trace_id` as exemplar in every histogram of latencies
and in `feed_degraded`, so a metric leads to traces. Names and labels of HTTP and RPC metrics are
those of the OpenTelemetry conventions, with underscores; counters end in `_total`, histograms in
`_bucket`, `_sum` and `_count`. Made from `mesh/metrics.py` by `make docs`.

| name | type | labels | unit | meaning | measured in |
|---|---|---|---|---|---|
"""
_TAIL = """\

On Linux each process also says of itself `process_cpu_seconds_total`,
`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`,
`process_max_fds` and `process_start_time_seconds`; everywhere `python_info` and
`python_gc_collections_total`, `python_gc_objects_collected_total` and
`python_gc_objects_uncollectable_total` by `generation`.
"""


def declared() -> dict[str, MetricWrapperBase]:
    """Every metric of `mesh.metrics`, by the name it has there."""
    return {
        name: metric
        for name, metric in vars(metrics).items()
        if isinstance(metric, MetricWrapperBase)
    }


def exported_name(metric: MetricWrapperBase) -> str:
    """The metric's name where it is read; of a histogram, without `_bucket`, `_sum`, `_count`."""
    [family] = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def measured_in() -> Mapping[str, list[str]]:
    """By the name it has in `mesh.metrics`, the files that measure a metric."""
    names = declared()
    helpers = _helpers(names)
    found: dict[str, set[str]] = defaultdict(set)
    for package in _PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for used in _used(ast.parse(file.read_text())):
                for name in helpers.get(used, {used} & names.keys()):
                    found[name].add(str(file.relative_to(ROOT)))
    return {name: sorted(files) for name, files in found.items()}


def render() -> str:
    """The table of all metrics, in Markdown."""
    where = measured_in()
    rows = []
    for name, metric in declared().items():
        [family] = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        unit = _UNITS.get(family.name.rpartition("_")[2], "count")
        files = ", ".join(f"`{file}`" for file in where.get(name, []))
        cells = (f"`{exported_name(metric)}`", family.type, labels, unit, family.documentation)
        rows.append(f"| {' | '.join((*cells, files))} |\n")
    return _HEAD + "".join(rows) + _TAIL


def _helpers(names: Mapping[str, object]) -> dict[str, set[str]]:
    """The functions of `mesh.metrics` that measure, and which metrics."""
    tree = ast.parse(Path(metrics.__file__).read_text())
    return {
        function.name: used
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        if (used := {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} & names.keys())
    }


def _used(tree: ast.Module) -> Iterator[str]:
    """What of `mesh.metrics` the module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metrics":
            yield node.attr
