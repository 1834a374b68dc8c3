"""Each rule finds what is broken: a check that cannot fail is worth nothing."""

from copy import deepcopy
from typing import Any

import pytest
import yaml

from tests.deploy import policies
from tests.deploy.policies import Manifest, Rule, title

REMOVED = object()

# Keeps to every rule; each broken one is made of it.
SOUND = list(
    yaml.safe_load_all("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: web
          image: nginx:1.29.3
          ports: [{name: http, containerPort: 8080}]
          envFrom: [{configMapRef: {name: settings}}]
          env: [{name: KEY, valueFrom: {secretKeyRef: {name: key, key: key}}}]
          resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 1Gi}}
          livenessProbe: {httpGet: {port: http}}
          readinessProbe: {httpGet: {port: http}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {scaleTargetRef: {kind: Deployment, name: web}, minReplicas: 2, maxReplicas: 4}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: some
  tls: [{secretName: key, hosts: [web.example]}]
  rules:
    - host: web.example
      http:
        paths:
          - {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {A: b}}
---
{apiVersion: v1, kind: Secret, metadata: {name: key}, data: {key: eA==}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web}}
""")
)
POD = "Deployment web.spec.template.spec"
WEB = f"{POD}.containers.0"
# Each rule with what it must find: a place of SOUND, and what stands there instead.
BROKEN: list[tuple[Rule, str, object]] = [
    (policies.run_as_root, f"{POD}.securityContext.runAsNonRoot", REMOVED),
    (policies.run_as_root, f"{WEB}.securityContext.runAsNonRoot", False),
    (policies.run_as_root, f"{WEB}.securityContext.runAsUser", 0),
    (policies.run_as_root, f"{POD}.securityContext.seccompProfile", {"type": "Unconfined"}),
    (
        policies.run_as_root,
        f"{POD}.initContainers",
        [{"name": "i", "securityContext": {"runAsUser": 0}}],
    ),
    (policies.may_do_too_much, f"{WEB}.securityContext.allowPrivilegeEscalation", REMOVED),
    (policies.may_do_too_much, f"{WEB}.securityContext.privileged", True),
    (policies.may_do_too_much, f"{WEB}.securityContext.capabilities", REMOVED),
    (policies.may_do_too_much, f"{WEB}.securityContext.capabilities.add", ["NET_ADMIN"]),
    (policies.may_do_too_much, f"{POD}.hostNetwork", True),
    (policies.may_do_too_much, f"{POD}.volumes", [{"name": "root", "hostPath": {"path": "/"}}]),
    (policies.write_their_root, f"{WEB}.securityContext.readOnlyRootFilesystem", False),
    (policies.hold_tokens, f"{POD}.automountServiceAccountToken", REMOVED),
    (policies.told_of_services, f"{POD}.enableServiceLinks", REMOVED),
    (policies.without_limits, f"{WEB}.resources.limits", REMOVED),
    (policies.without_limits, f"{WEB}.resources.requests.cpu", REMOVED),
    (policies.not_probed, f"{WEB}.livenessProbe", REMOVED),
    (policies.not_probed, f"{WEB}.readinessProbe", REMOVED),
    (policies.images_not_pinned, f"{WEB}.image", "nginx"),
    (policies.images_not_pinned, f"{WEB}.image", "nginx:latest"),
    (policies.images_not_pinned, f"{WEB}.image", "registry.example:5000/nginx"),
    (policies.images_without_digest, f"{WEB}.image", "feedmesh/gateway:0.1.0"),
    (
        policies.workloads_without_their_pods,
        "Deployment web.spec.selector.matchLabels.app",
        "other",
    ),
    (policies.services_without_pods, "Service web.spec.selector.app", "other"),
    (policies.services_without_pods, "Service web.spec.selector", REMOVED),
    (policies.services_without_pods, "Service web.spec.ports.0.targetPort", "grpc"),
    (policies.services_without_pods, "Service web.metadata.namespace", "other"),
    (
        policies.network_policies_without_pods,
        "NetworkPolicy web.spec.podSelector.matchLabels.app",
        "other",
    ),
    (policies.open_to_all, "NetworkPolicy web.spec.podSelector.matchLabels.app", "other"),
    (
        policies.callers_that_are_missing,
        "NetworkPolicy web.spec.ingress.0.from.0.podSelector.matchLabels.app",
        "other",
    ),
    (policies.names_of_nothing, f"{POD}.serviceAccountName", "other"),
    (policies.names_of_nothing, f"{POD}.volumes.0.persistentVolumeClaim.claimName", "other"),
    (policies.names_of_nothing, f"{POD}.volumes", [{"name": "c", "configMap": {"name": "other"}}]),
    (
        policies.names_of_nothing,
        f"{POD}.volumes",
        [{"name": "s", "secret": {"secretName": "other"}}],
    ),
    (policies.names_of_nothing, f"{WEB}.envFrom.0.configMapRef.name", "other"),
    (policies.names_of_nothing, f"{WEB}.env.0.valueFrom.secretKeyRef.name", "other"),
    (policies.names_of_nothing, f"{WEB}.env.0.valueFrom.secretKeyRef.key", "other"),
    (policies.names_of_nothing, "Ingress web.spec.tls.0.secretName", "other"),
    (policies.budgets_that_forbid_drains, "PodDisruptionBudget web.spec.maxUnavailable", 0),
    (policies.budgets_that_forbid_drains, "PodDisruptionBudget web.spec.minAvailable", 2),
    (policies.budgets_that_forbid_drains, "PodDisruptionBudget web.spec.minAvailable", "100%"),
    (
        policies.budgets_that_forbid_drains,
        "PodDisruptionBudget web.spec.selector.matchLabels.app",
        "other",
    ),
    (policies.scaled_by_two, "Deployment web.spec.replicas", 2),
    (policies.scaled_by_two, "HorizontalPodAutoscaler web.spec.scaleTargetRef.name", "other"),
    (policies.scaled_by_two, "HorizontalPodAutoscaler web.spec.minReplicas", 5),
    (policies.entries_that_lead_nowhere, "Ingress web.spec.ingressClassName", REMOVED),
    (policies.entries_without_tls, "Ingress web.spec.tls", REMOVED),
    (policies.entries_without_tls, "Ingress web.spec.rules.0.host", "other.example"),
    (policies.entries_without_tls, "Ingress web.spec.rules.0.host", REMOVED),
    (
        policies.entries_that_lead_nowhere,
        "Ingress web.spec.rules.0.http.paths.0.backend.service.name",
        "other",
    ),
    (policies.secrets_in_files, "Secret key.data.key", "eQ=="),
]


@pytest.mark.parametrize(
    "rule",
    [
        *policies.RULES,
        policies.images_without_digest,
        policies.callers_that_are_missing,
        policies.entries_without_tls,
    ],
    ids=lambda rule: rule.__name__,
)
def test_what_is_sound_breaks_no_rule(rule: Rule) -> None:
    assert rule(SOUND) == []


@pytest.mark.parametrize(
    ("rule", "place", "value"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in BROKEN],
)
def test_what_is_broken_is_found_and_named(rule: Rule, place: str, value: object) -> None:
    [found, *_] = rule(_with(SOUND, place, value))
    assert found.startswith((place.partition(".")[0], "Deployment web"))


def test_every_rule_has_something_broken_that_it_must_find() -> None:
    assert set(policies.RULES) <= {rule for rule, _, _ in BROKEN}


def _with(manifests: list[Manifest], place: str, value: object) -> list[Manifest]:
    """A copy with another value at a place such as "Service web.spec.ports.0.port"."""
    copies = deepcopy(manifests)
    owner, *steps, last = place.split(".")
    found: Any = next(each for each in copies if title(each) == owner)
    for step in steps:
        found = found[int(step)] if isinstance(found, list) else found[step]
    if value is REMOVED:
        del found[last]
    else:
        found[last] = value
    return copies
