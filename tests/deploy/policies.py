"""Our rules for manifests: each is a function that lists what breaks it, by the object's name.

They say what a schema cannot: that names which must be the same are, and that a pod may do no more
than it must. `RULES` has those that every build keeps to.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
Rule = Callable[[Sequence[Manifest]], list[str]]

# What cannot keep to a rule, as "Kind name", and why.
WRITABLE_ROOT: dict[str, str] = {}
TOKENS = {
    "StatefulSet prometheus": "asks the API server which pods there are",
}
NOT_PROBED: dict[str, str] = {}
# What a user brings to the cluster beside what is built.
BROUGHT = {
    "Secret feedmesh-tls": "the certificate of the Ingress, by cert-manager or by hand",
}

_RESTARTED = ("Deployment", "StatefulSet", "DaemonSet")
_PINNED = re.compile(
    r"\S+(?::(?!latest(?:@|$))[\w.-]+(?:@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Pod:
    """What a workload makes pods of, or a pod of its own.

    Attributes:
        owner: The workload, as "Kind name"; the pod where there is none.
        kind: The owner's.
        namespace: Where it runs; empty where the build does not say.
        labels: The pods'.
        spec: The pods'.
    """

    owner: str
    kind: str
    namespace: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All, also those that run before the others."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> set[str | int]:
        """Names and numbers of what it listens on."""
        ports = [port for each in self.containers for port in each.get("ports", [])]
        return {port["containerPort"] for port in ports} | {
            port["name"] for port in ports if "name" in port
        }


def title(manifest: Manifest) -> str:
    """What violations call it."""
    metadata = manifest["metadata"]
    return f"{manifest['kind']} {metadata.get('name') or metadata['generateName']}"


def pods(manifests: Iterable[Manifest]) -> Iterator[Pod]:
    """The pods of all workloads, and those that are on their own."""
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] == "Pod":
            labels = each["metadata"].get("labels", {})
            yield Pod(title(each), each["kind"], _namespace(each), labels, spec)
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if each["kind"] in (*_RESTARTED, "Job", "CronJob"):
            template = spec["template"]
            labels = template.get("metadata", {}).get("labels", {})
            yield Pod(title(each), each["kind"], _namespace(each), labels, template["spec"])


def run_as_root(manifests: Sequence[Manifest]) -> list[str]:
    found = []
    for pod in pods(manifests):
        by_pod = pod.spec.get("securityContext", {})
        for container in pod.containers:
            context = {**by_pod, **container.get("securityContext", {})}
            if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
                found.append(f"{pod.owner}: {container['name']} may run as root")
            if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
                found.append(f"{pod.owner}: {container['name']} may make any system call")
    return found


def may_do_too_much(manifests: Sequence[Manifest]) -> list[str]:
    found = []
    for pod in pods(manifests):
        hosts = [each for each in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(each)]
        hosts += [each["name"] for each in pod.spec.get("volumes", []) if "hostPath" in each]
        found += [f"{pod.owner} uses the host's {each}" for each in hosts]
        for container in pod.containers:
            context = container.get("securityContext", {})
            who = f"{pod.owner}: {container['name']}"
            if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
                found.append(f"{who} may gain privileges")
            if context.get("capabilities") != {"drop": ["ALL"]}:
                found.append(f"{who} keeps capabilities")
    return found


def write_their_root(manifests: Sequence[Manifest]) -> list[str]:
    return [
        f"{pod.owner}: {container['name']} may write its root file system"
        for pod in pods(manifests)
        if pod.owner not in WRITABLE_ROOT
        for container in pod.containers
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True
    ]


def hold_tokens(manifests: Sequence[Manifest]) -> list[str]:
    return [
        f"{pod.owner} holds a token of the API server's"
        for pod in pods(manifests)
        if pod.owner not in TOKENS and pod.spec.get("automountServiceAccountToken") is not False
    ]


def told_of_services(manifests: Sequence[Manifest]) -> list[str]:
    """A Service named `qdrant` or `feast` sets variables that a program may take for its own."""
    return [
        f"{pod.owner} has a variable of each Service's"
        for pod in pods(manifests)
        if pod.spec.get("enableServiceLinks") is not False
    ]


def without_limits(manifests: Sequence[Manifest]) -> list[str]:
    found = []
    for pod in pods(manifests):
        for container in pod.containers:
            resources = container.get("resources", {})
            who = f"{pod.owner}: {container['name']}"
            missing = {"cpu", "memory"} - resources.get("requests", {}).keys()
            found += [f"{who} does not say how much {each} it needs" for each in sorted(missing)]
            if "memory" not in resources.get("limits", {}):
                found.append(f"{who} may use all memory")
    return found


def not_probed(manifests: Sequence[Manifest]) -> list[str]:
    """What listens is asked whether it lives; what a Service leads to, whether it is ready."""
    found = []
    for pod in pods(manifests):
        if pod.kind not in _RESTARTED or pod.owner in NOT_PROBED:
            continue
        is_called = any(_selects(each, pod) for each in _of_kind(manifests, "Service"))
        for container in pod.spec["containers"]:
            if container.get("ports"):
                wanted = {"livenessProbe"} | ({"readinessProbe"} if is_called else set())
                found += [
                    f"{pod.owner}: {container['name']} has no {each}"
                    for each in sorted(wanted - container.keys())
                ]
    return found


def images_not_pinned(manifests: Sequence[Manifest]) -> list[str]:
    return [
        f"{pod.owner}: {container['image']} may be another image tomorrow"
        for pod in pods(manifests)
        for container in pod.containers
        if not is_pinned(container["image"])
    ]


def is_pinned(image: str) -> bool:
    """Whether the image is named by a tag that is not `latest`, or by its digest."""
    return _PINNED.fullmatch(image) is not None


def images_without_digest(manifests: Sequence[Manifest]) -> list[str]:
    """Not one of RULES: for the images of ours, in production."""
    return [
        f"{pod.owner}: {container['image']} is not named by its digest"
        for pod in pods(manifests)
        for container in pod.containers
        if "feedmesh/" in container["image"] and "@sha256:" not in container["image"]
    ]


def workloads_without_their_pods(manifests: Sequence[Manifest]) -> list[str]:
    by_title = {pod.owner: pod for pod in pods(manifests)}
    return [
        f"{title(each)} selects other pods than its own"
        for each in manifests
        if each["kind"] in _RESTARTED
        if not _matches(each["spec"]["selector"], by_title[title(each)].labels)
    ]


def services_without_pods(manifests: Sequence[Manifest]) -> list[str]:
    found = []
    for service in _of_kind(manifests, "Service"):
        if "selector" not in service["spec"]:
            by_hand = [each["metadata"]["labels"] for each in _of_kind(manifests, "EndpointSlice")]
            name = service["metadata"]["name"]
            if name not in [labels.get("kubernetes.io/service-name") for labels in by_hand]:
                found.append(f"{title(service)} has neither selector nor EndpointSlice")
            continue
        selected = [pod for pod in pods(manifests) if _selects(service, pod)]
        if not selected:
            found.append(f"{title(service)} selects no pod")
        for pod in selected:
            found += [
                f"{title(service)}: {pod.owner} has no port for {port['port']}"
                for port in service["spec"].get("ports", [])
                if port.get("targetPort", port["port"]) not in pod.ports
            ]
    return found


def network_policies_without_pods(manifests: Sequence[Manifest]) -> list[str]:
    return [
        f"{title(policy)} selects no pod"
        for policy in _of_kind(manifests, "NetworkPolicy")
        if not any(_selects(policy, pod) for pod in pods(manifests))
    ]


def open_to_all(manifests: Sequence[Manifest]) -> list[str]:
    policies = _of_kind(manifests, "NetworkPolicy")
    return [
        f"{pod.owner} is selected by no NetworkPolicy"
        for pod in pods(manifests)
        if not any(_selects(policy, pod) for policy in policies)
    ]


def callers_that_are_missing(manifests: Sequence[Manifest]) -> list[str]:
    """Not one of RULES: the base alone has no Prometheus, which its policies let in."""
    found = []
    for policy in _of_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for peer in rule.get("from", []):
                # Another namespace's pods are somebody else's.
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    selector = peer["podSelector"]
                    if not any(_matches(selector, pod.labels) for pod in pods(manifests)):
                        found.append(f"{title(policy)} lets in {selector}, which is no pod")
    return found


def names_of_nothing(manifests: Sequence[Manifest]) -> list[str]:
    """ConfigMaps, Secrets, claims, keys and accounts that pods, or an Ingress, name in vain."""
    there = {title(each): each for each in manifests}
    # A StatefulSet's first pod has the claim of this name.
    there |= {
        f"PersistentVolumeClaim {claim['metadata']['name']}-{each['metadata']['name']}-0": claim
        for each in _of_kind(manifests, "StatefulSet")
        for claim in each["spec"].get("volumeClaimTemplates", [])
    }
    found = []
    for pod in pods(manifests):
        for named, key in _named(pod):
            if named not in there.keys() | BROUGHT.keys():
                found.append(f"{pod.owner} names {named}, which is not there")
            elif key and named in there and key not in _keys(there[named]):
                found.append(f"{pod.owner} wants {key} of {named}, which has none")
    for ingress in _of_kind(manifests, "Ingress"):
        for tls in ingress["spec"].get("tls", []):
            named = f"Secret {tls['secretName']}"
            if named not in there.keys() | BROUGHT.keys():
                found.append(f"{title(ingress)} names {named}, which is not there")
    return found


def budgets_that_forbid_drains(manifests: Sequence[Manifest]) -> list[str]:
    """Those that never let a pod go, and those that guard none."""
    fewest = {
        each["metadata"]["name"]: each["spec"].get("minReplicas", 1)
        for each in _of_kind(manifests, "HorizontalPodAutoscaler")
    }
    replicas = {
        title(each): fewest.get(each["metadata"]["name"], each["spec"].get("replicas", 1))
        for each in manifests
        if each["kind"] in _RESTARTED
    }
    found = []
    for budget in _of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        guarded = [pod for pod in pods(manifests) if _selects(budget, pod)]
        if not guarded:
            found.append(f"{title(budget)} selects no pod")
        there = sum(replicas.get(pod.owner, 0) for pod in guarded)
        if spec.get("maxUnavailable", 1) in (0, "0%") or _share(spec, there) >= there > 0:
            found.append(f"{title(budget)} lets no pod go")
    return found


def scaled_by_two(manifests: Sequence[Manifest]) -> list[str]:
    """Autoscalers of nothing, and of what each apply would set back to a number of its own."""
    there = {title(each): each for each in manifests}
    found = []
    for scaler in _of_kind(manifests, "HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        target = f"{spec['scaleTargetRef']['kind']} {spec['scaleTargetRef']['name']}"
        if target not in there:
            found.append(f"{title(scaler)} scales {target}, which is not there")
        elif "replicas" in there[target]["spec"]:
            found.append(f"{target} has fixed replicas and {title(scaler)}")
        if spec.get("minReplicas", 1) > spec["maxReplicas"]:
            found.append(f"{title(scaler)} has a minimum above its maximum")
    return found


def entries_that_lead_nowhere(manifests: Sequence[Manifest]) -> list[str]:
    """An Ingress has a class, and a port of a Service behind each path."""
    ports = {
        each["metadata"]["name"]: {
            port[field]
            for port in each["spec"]["ports"]
            for field in ("name", "port")
            if field in port
        }
        for each in _of_kind(manifests, "Service")
    }
    found = []
    for ingress in _of_kind(manifests, "Ingress"):
        spec = ingress["spec"]
        if "ingressClassName" not in spec:
            found.append(f"{title(ingress)} has no class")
        for rule in spec["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                port = service["port"].get("name", service["port"].get("number"))
                if port not in ports.get(service["name"], set()):
                    found.append(
                        f"{title(ingress)}: no {service['name']}:{port} for {path['path']}"
                    )
    return found


def entries_without_tls(manifests: Sequence[Manifest]) -> list[str]:
    """Not one of RULES: a node of one's own has no certificate."""
    return [
        f"{title(ingress)} has no TLS for {rule.get('host', 'any host')}"
        for ingress in _of_kind(manifests, "Ingress")
        for rule in ingress["spec"]["rules"]
        if not any(rule.get("host") in tls["hosts"] for tls in ingress["spec"].get("tls", []))
    ]


def secrets_in_files(manifests: Sequence[Manifest]) -> list[str]:
    """Not one of RULES: for the files of k8s/, of which none may have a Secret's value."""
    found = []
    for each in manifests:
        if each.get("kind") == "Secret" and (each.get("data") or each.get("stringData")):
            found.append(f"{title(each)} has values")
        if each.get("kind") in ("Kustomization", "Component"):
            found += [
                f"secretGenerator {generator['name']} has values"
                for generator in each.get("secretGenerator", [])
                if generator.get("literals")
            ]
    return found


RULES: tuple[Rule, ...] = (
    run_as_root,
    may_do_too_much,
    write_their_root,
    hold_tokens,
    told_of_services,
    without_limits,
    not_probed,
    images_not_pinned,
    workloads_without_their_pods,
    services_without_pods,
    network_policies_without_pods,
    open_to_all,
    names_of_nothing,
    budgets_that_forbid_drains,
    scaled_by_two,
    entries_that_lead_nowhere,
)


def _of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def _namespace(manifest: Manifest) -> str:
    namespace: str = manifest["metadata"].get("namespace", "")
    return namespace


def _selects(manifest: Manifest, pod: Pod) -> bool:
    """Whether a Service, a policy or a budget is about the pod."""
    spec = manifest["spec"]
    if manifest["kind"] == "Service":
        selector = {"matchLabels": spec["selector"]} if spec.get("selector") else None
    else:
        selector = spec.get("podSelector", spec.get("selector"))
    is_near = _namespace(manifest) == pod.namespace
    return is_near and selector is not None and _matches(selector, pod.labels)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """As Kubernetes does it; an empty selector matches all."""
    for each in selector.get("matchExpressions", []):
        value, values = labels.get(each["key"]), each.get("values", [])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[each["operator"]]:
            return False
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def _named(pod: Pod) -> Iterator[tuple[str, str | None]]:
    """What the pod needs to start, each with the key that must be in it, if any."""
    if account := pod.spec.get("serviceAccountName"):
        yield f"ServiceAccount {account}", None
    for volume in pod.spec.get("volumes", []):
        for part in (volume, *volume.get("projected", {}).get("sources", [])):
            for field, kind, name in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ):
                if field in part and not part[field].get("optional"):
                    yield f"{kind} {part[field].get(name) or part[field]['name']}", None
                    for item in part[field].get("items", []):
                        yield f"{kind} {part[field].get(name) or part[field]['name']}", item["key"]
    for container in pod.containers:
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and not source[field].get("optional"):
                    yield f"{kind} {source[field]['name']}", None
        for variable in container.get("env", []):
            value = variable.get("valueFrom", {})
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in value and not value[field].get("optional"):
                    yield f"{kind} {value[field]['name']}", value[field]["key"]


def _keys(manifest: Manifest) -> set[str]:
    return {
        key for field in ("data", "stringData", "binaryData") for key in manifest.get(field) or {}
    }


def _share(budget: dict[str, Any], there: int) -> float:
    """How many of so many pods must stay."""
    least = budget.get("minAvailable", 0)
    return there * int(least[:-1]) / 100 if isinstance(least, str) else least
