"""What a PromQL expression speaks of, held against the metrics that exist."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import promql_parser as promql
from prometheus_client.metrics import MetricWrapperBase

from mesh.metrics_table import declared, exported_name

# What Prometheus itself adds to every series.
TARGET = frozenset({"job", "instance"})
# What prometheus_client says of every process on Linux.
PROCESS = frozenset(
    {
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    }
)
# Labels whose values are the conventions' or other people's, not ours to list.
_OPEN_LABELS = TARGET | {"error_type"}
_OPEN_PREFIXES = ("http_", "rpc_", "db_")


class WrongQuery(Exception):
    """An expression that cannot give what it is meant to."""


@dataclass(frozen=True)
class Metric:
    """A name that can be queried.

    Attributes:
        labels: That its series have.
        le: Of a histogram, the values of `le`.
        about: Its documentation, which names the values that its labels have.
    """

    labels: frozenset[str]
    le: frozenset[str] = frozenset()
    about: str = ""


def exported() -> dict[str, Metric]:
    """Everything that a process of ours exports, and `up`, by the name it is queried by."""
    found = {name: Metric(TARGET) for name in (*PROCESS, "up")}
    for metric in declared().values():
        found |= _series(metric)
    return found


def _series(metric: MetricWrapperBase) -> dict[str, Metric]:
    [family] = metric.describe()
    name = exported_name(metric)
    labels = TARGET | set(metric._labelnames)
    plain = Metric(labels, about=family.documentation)
    if family.type != "histogram":
        return {name: plain}
    bounds = frozenset(str(float(bound)) for bound in metric._kwargs["buckets"])
    bucket = Metric(labels | {"le"}, bounds | {"+Inf"}, family.documentation)
    return {f"{name}_bucket": bucket, f"{name}_count": plain, f"{name}_sum": plain}


def labels_of(query: str, known: Mapping[str, Metric]) -> frozenset[str]:
    """The labels of the query's result.

    Raises:
        WrongQuery: It is no PromQL, or uses a name, a label, a value or a bucket that does not
            exist, or joins what can never match.
    """
    try:
        parsed = promql.parse(query.replace("$__rate_interval", "5m"))
    except ValueError as error:
        raise WrongQuery(f"{query}: {error}") from error
    labels = _labels(parsed, known)
    return labels if labels is not None else frozenset()


def _labels(node: promql.Expr, known: Mapping[str, Metric]) -> frozenset[str] | None:
    """The labels of the node's result; None of a number."""
    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return None
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return _labels(node.expr, known)
        case promql.VectorSelector():
            return _selected(node, known)
        case promql.MatrixSelector():
            return _selected(node.vector_selector, known)
        case promql.AggregateExpr():
            return _aggregated(node, known)
        case promql.Call():
            return _called(node, known)
        case promql.BinaryExpr():
            return _joined(node, known)
    raise WrongQuery(f"{node.prettify()}: not understood")


def _selected(node: promql.VectorSelector, known: Mapping[str, Metric]) -> frozenset[str]:
    metric = known.get(node.name or "")
    if metric is None:
        raise WrongQuery(f"there is no metric {node.name}")
    for matcher in node.matchers.matchers:
        if matcher.name not in metric.labels:
            raise WrongQuery(f"{node.name} has no label {matcher.name}")
        for value in matcher.value.split("|"):
            if not _has_value(metric, matcher.name, value):
                raise WrongQuery(f"{node.name} has no {matcher.name}={value}")
    return metric.labels


def _has_value(metric: Metric, label: str, value: str) -> bool:
    if label == "le":
        return value in metric.le
    if label in _OPEN_LABELS or label.startswith(_OPEN_PREFIXES):
        return True
    return value in re.findall(r"\w+", metric.about)


def _aggregated(node: promql.AggregateExpr, known: Mapping[str, Metric]) -> frozenset[str]:
    inner = _vector(node.expr, known)
    if node.modifier is None:
        return frozenset()
    named = _existing(node.modifier.labels, inner, node)
    return named if node.modifier.type == promql.AggModifierType.By else inner - named


def _called(node: promql.Call, known: Mapping[str, Metric]) -> frozenset[str] | None:
    name = node.func.name
    given = [_labels(argument, known) for argument in node.args]
    if name == "vector":
        return frozenset()
    vectors = [labels for labels in given if labels is not None]
    if not vectors:
        return None
    [labels] = vectors
    if name == "histogram_quantile":
        return labels - _existing(["le"], labels, node)
    return labels


def _joined(node: promql.BinaryExpr, known: Mapping[str, Metric]) -> frozenset[str] | None:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    if left is None or right is None:
        return right if left is None else left
    matching = node.modifier.matching if node.modifier else None
    if node.modifier is None or matching is None:
        if left != right:
            raise WrongQuery(f"{node.prettify()}: {set(left)} never match {set(right)}")
        return left
    on = _existing(matching.labels, left & right, node)
    if node.modifier.card == promql.VectorMatchCardinality.ManyToOne:
        return left | _existing(node.modifier.group_labels or [], right, node)
    return on


def _vector(node: promql.Expr, known: Mapping[str, Metric]) -> frozenset[str]:
    labels = _labels(node, known)
    if labels is None:
        raise WrongQuery(f"{node.prettify()} is a number")
    return labels


def _existing(named: list[str], labels: frozenset[str], node: promql.Expr) -> frozenset[str]:
    missing = set(named) - labels
    if missing:
        raise WrongQuery(f"{node.prettify()}: no label {', '.join(sorted(missing))}")
    return frozenset(named)
