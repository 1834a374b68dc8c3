"""The dashboard, the rules and the collector's configuration speak of what really exists."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import metrics
from tests.exposition import Exposition
from tests.observability.promql import (
    PROCESS,
    TARGET,
    Metric,
    WrongQuery,
    exported,
    labels_of,
)

ROOT = Path(__file__).parent.parent.parent
INFRA = ROOT / "k8s" / "infra"
DASHBOARD: dict[str, Any] = json.loads((INFRA / "grafana" / "feedmesh.json").read_text())
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((INFRA / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
COLLECTOR: dict[str, Any] = yaml.safe_load(
    (INFRA / "otel-collector" / "collector.yaml").read_text()
)


@pytest.fixture(scope="module")
def known() -> dict[str, Metric]:
    """Everything that can be queried: what is exported, and what rules record of it."""
    found = exported()
    for rule in RULES:
        if "record" in rule:
            found[rule["record"]] = Metric(labels_of(rule["expr"], found))
    return found


def by_title(panel: dict[str, Any]) -> str:
    return str(panel["title"])


# -- the check itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(feed_candidates_total[5m]", "feed_candidates_total"),
        ("feed_latency", "no metric feed_latency"),
        ("rate(feed_candidates[5m])", "no metric feed_candidates"),
        ('feed_latency_seconds_count{step="total"}', "no label step"),
        ('feed_latency_seconds_count{outcome=~"ok|failed"}', "no outcome=failed"),
        ('feed_latency_seconds_bucket{le="0.3"}', "no le=0.3"),
        ("sum by (backends) (feed_degraded_total)", "no label backends"),
        ("sum by (stage) (sum by (outcome) (feed_latency_seconds_count))", "no label stage"),
        (
            "histogram_quantile(0.9, sum by (stage) (rate(feed_latency_seconds_bucket[5m])))",
            "no label le",
        ),
        ("up * on (job, service) group_left (version) feedmesh_info", "no label service"),
        ("up * on (job, instance) group_left (host) feedmesh_info", "no label host"),
        ("sum by (job) (up) / sum(up)", "never match"),
    ],
)
def test_a_query_that_cannot_work_is_found(query: str, wrong: str) -> None:
    with pytest.raises(WrongQuery, match=f"(?i){wrong}"):
        labels_of(query, exported())


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("sum(up) > 14.4 * 0.001", set()),
        ("sum by (stage) (rate(feed_latency_seconds_count[$__rate_interval]))", {"stage"}),
        (
            "histogram_quantile(0.9, rate(event_delay_seconds_bucket[5m]))",
            {*TARGET, "topic", "group"},
        ),
        ("up * on (job, instance) group_left (service) feedmesh_info", {*TARGET, "service"}),
        ("sum without (job) (up)", {"instance"}),
    ],
)
def test_the_labels_of_a_result_are_known(query: str, labels: set[str]) -> None:
    assert labels_of(query, exported()) == labels


def test_what_can_be_queried_is_what_a_process_exports() -> None:
    values = Exposition(metrics.exposition().decode()).values
    known = exported()
    ours = {name for name, _ in values if not name.startswith(("python_", "process_"))}
    ours = {name for name in ours if not name.endswith("_created")}
    assert ours <= known.keys()
    for name, labels in values:
        if name in ours:
            assert {label for label, _ in labels} | TARGET == known[name].labels
    if sys.platform == "linux":
        assert {name for name, _ in values} >= PROCESS


# -- the rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_speaks_of_metrics_and_labels_that_exist(
    rule: dict[str, Any], known: dict[str, Metric]
) -> None:
    labels = labels_of(rule["expr"], known)
    for text in rule.get("annotations", {}).values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert f"\n## {rule['alert']}\n" in (ROOT / file).read_text()


def test_the_runbook_is_of_alerts_that_exist() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]


def test_every_alert_is_seen_firing_in_the_rules_own_tests() -> None:
    tests = yaml.safe_load((INFRA / "prometheus" / "rules.test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    assert firing == {rule["alert"] for rule in ALERTS}


# -- the dashboard ------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_queries_metrics_and_labels_that_exist(
    panel: dict[str, Any], known: dict[str, Metric]
) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        labels = labels_of(target["expr"], known)
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_an_annotation_queries_what_exists(known: dict[str, Metric]) -> None:
    for annotation in DASHBOARD["annotations"]["list"]:
        labels = labels_of(annotation["expr"], known)
        assert set(re.findall(r"{{(\w+)}}", annotation["titleFormat"])) <= labels


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_says_what_it_shows_in_which_unit_and_what_to_do(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 20
    assert {panel["datasource"]["uid"]} | {t["datasource"]["uid"] for t in panel["targets"]} == {
        "${datasource}"
    }
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs))


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        for cell in cells(panel["gridPos"]):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            assert 0 <= cell[0] < 24
            taken[cell] = panel["title"]


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    return itertools.product(
        range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    )


def test_every_latency_leads_to_traces() -> None:
    """A panel of a histogram that has exemplars asks for them, and links them to a trace."""
    without = {"event_loop_lag_seconds"}
    for panel in PANELS:
        for target in panel["targets"]:
            names = set(re.findall(r"(\w+_seconds)_bucket", target["expr"])) - without
            assert bool(target.get("exemplar")) >= bool(names), panel["title"]
            if target.get("exemplar"):
                [link] = [
                    override
                    for override in panel["fieldConfig"]["overrides"]
                    if override["matcher"] == {"id": "byName", "options": "trace_id"}
                ]
                [property] = link["properties"]
                assert "${traces}" in property["value"][0]["url"]
                assert "${__value.raw}" in property["value"][0]["url"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "traces"}


@pytest.mark.parametrize("name", [n for n in exported() if n not in PROCESS | {"up"}])
def test_every_metric_is_on_the_dashboard_or_in_a_rule(name: str) -> None:
    """What nobody looks at need not be measured."""
    family = re.sub(r"_(bucket|count|sum)$", "", name)
    everything = json.dumps(DASHBOARD) + json.dumps(RULES)
    assert re.search(rf"\b{family}(_bucket|_count|_sum)?\b", everything)


# -- the collector ------------------------------------------------------------------------------


def test_the_collectors_pipelines_are_made_of_what_is_configured_and_built() -> None:
    built = yaml.safe_load((INFRA / "otel-collector" / "builder.yaml").read_text())
    modules = {
        kind: {each["gomod"].split()[0].rpartition("/")[2] for each in built[kind]}
        for kind in ("receivers", "processors", "exporters", "extensions")
    }
    service = COLLECTOR["service"]
    used = {kind: set[str]() for kind in modules}
    used["extensions"] |= set(service["extensions"])
    for pipeline in service["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            used[kind] |= set(pipeline[kind])
    for kind, names in used.items():
        assert names == COLLECTOR[kind].keys()
        # otlp_grpc is of the module otlpexporter.
        bare = {name.replace("_grpc", "").replace("_", "") for name in names}
        assert {f"{name}{kind.removesuffix('s')}" for name in bare} == modules[kind]
    # What cannot be held is refused before anything else; batching comes after sampling.
    assert service["pipelines"]["traces"]["processors"] == [
        "memory_limiter", "tail_sampling", "batch",
    ]  # fmt: skip
