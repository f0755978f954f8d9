"""The manifests of `deploy/kubernetes`: rendered by kubectl, checked against the schemas of Kubernetes and each other.

There is no cluster: nothing here says that a pod starts.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.app import STOP_MARGIN_S
from gateway.config import Config, resolve
from gateway.exposures import refused
from tests.clients.install import missing, program
from tests.e2e.proxies import DEPLOY

MANIFESTS = DEPLOY / "kubernetes"
OVERLAYS = ("mosquitto", "emqx")
VERSIONS = ("1.30", "1.34")
CUSTOM = {"ServiceMonitor"}  # its schema is the Prometheus operator's
BYTES_PER_DEVICE = 24_000  # with its link: twice what deploy/CAPACITY.md measured on WebSockets
OF_THE_PROCESS_BYTES = 128 << 20
Manifest = dict[str, Any]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> list[Manifest]:
    command = (program("kubectl"), "kustomize", str(MANIFESTS / "overlays" / overlay))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unknown field" in done.stderr:
        missing("kubectl 1.27 or newer is not installed")
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kinds(overlay: str, kind: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in rendered(overlay) if found["kind"] == kind}


def pods(overlay: str) -> Iterator[Manifest]:
    for workload in kinds(overlay, "StatefulSet").values():
        yield workload["spec"]["template"]


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    return dict(only)


def chosen(overlay: str, labels: dict[str, str]) -> list[Manifest]:
    """The pods that have these labels."""
    return [pod for pod in pods(overlay) if labels.items() <= pod["metadata"]["labels"].items()]


@overlays
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(overlay: str, version: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_field_is_noticed() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(kinds("emqx", "Service")["emqx"] | {"sepc": {}}, VERSIONS[-1], strict=True)


@overlays
def test_pods_are_restricted(overlay: str) -> None:
    """What the Pod Security Standard `restricted` asks for, which the namespace enforces, and no token of the API."""
    labels = kinds(overlay, "Namespace")["gateway"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(overlay):
        of_pod, of_container = pod["spec"]["securityContext"], container(pod)["securityContext"]
        assert of_pod["runAsNonRoot"] is True
        assert of_pod["runAsUser"] > 0
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert of_container["allowPrivilegeEscalation"] is False
        assert of_container["capabilities"] == {"drop": ["ALL"]}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert {next(iter(volume.keys() - {"name"})) for volume in pod["spec"]["volumes"]} <= {
            "configMap",
            "secret",
            "projected",
        }


@overlays
def test_images_have_a_version(overlay: str) -> None:
    assert all(re.search(r":v?\d+\.\d+\.\d+$", container(pod)["image"]) for pod in pods(overlay))


@overlays
def test_selectors_choose_pods_and_ports_have_names_there(overlay: str) -> None:
    for name, service in kinds(overlay, "Service").items():
        (pod,) = chosen(overlay, service["spec"]["selector"])
        named = {port["name"] for port in container(pod)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named, name
    for kind, path in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("StatefulSet", "selector"),
    ):
        for name, manifest in kinds(overlay, kind).items():
            assert len(chosen(overlay, manifest["spec"][path]["matchLabels"])) == 1, (kind, name)
    for name, workload in kinds(overlay, "StatefulSet").items():
        assert workload["spec"]["serviceName"] in kinds(overlay, "Service"), name
    for pod in pods(overlay):
        named = {port["name"] for port in container(pod)["ports"]}
        for probe in (value for key, value in container(pod).items() if key.endswith("Probe")):
            assert next(iter(probe[how]["port"] for how in ("httpGet", "tcpSocket") if how in probe)) in named


@overlays
def test_prometheus_finds_the_nodes_by_a_name_that_the_alerts_look_for(overlay: str) -> None:
    spec = kinds(overlay, "ServiceMonitor")["gateway"]["spec"]
    labels = spec["selector"]["matchLabels"]
    (service,) = [
        found for found in kinds(overlay, "Service").values() if labels.items() <= found["metadata"]["labels"].items()
    ]
    assert service["metadata"]["labels"][spec["jobLabel"]] == "gateway"
    assert {endpoint["port"] for endpoint in spec["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    assert chosen(overlay, service["spec"]["selector"]) == chosen(overlay, {"app.kubernetes.io/name": "gateway"})


def references(tree: object, kind: str, name: str) -> Iterator[str]:
    """The names of all ConfigMaps or Secrets that a manifest refers to."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in (kind, f"{kind}KeyRef"):
                yield value.get(name) or value["name"]
            yield from references(value, kind, name)
    elif isinstance(tree, list):
        for item in tree:
            yield from references(item, kind, name)


@overlays
def test_what_is_mounted_is_there_or_is_in_the_instructions(overlay: str) -> None:
    readme = (DEPLOY / "README.md").read_text("utf-8")
    for pod in pods(overlay):
        assert set(references(pod, "configMap", "name")) <= set(kinds(overlay, "ConfigMap"))
        secrets = set(references(pod, "secret", "secretName"))
        assert secrets
        for secret in secrets:
            assert f"create secret generic {secret} " in readme
    assert not kinds(overlay, "Secret"), "no secret is in the repository"


def node(overlay: str = "mosquitto") -> Manifest:
    (found,) = chosen(overlay, {"app.kubernetes.io/name": "gateway"})
    return found


def config_of(name: str) -> Config:
    """What a node of this name is told: by the file, and by the environment as Kubernetes makes it."""
    fields = {"metadata.name": name, "metadata.namespace": "gateway"}
    environ: dict[str, str] = {}
    for variable in container(node())["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            value = fields[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            value = {"mqtt-url": "mqtt://gateway:secret@mosquitto:1883"}.get(source["secretKeyRef"]["key"], "x" * 64)
        else:
            value = re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], variable["value"])
        environ[variable["name"]] = value
    return resolve(tomllib.loads((MANIFESTS / "base/gateway.toml").read_text("utf-8")), environ, {})


def test_a_node_is_configured_and_leaves_nothing_open() -> None:
    one, two = config_of("gateway-0"), config_of("gateway-1")
    assert (one.node, two.node) == ("gateway-0", "gateway-1")
    assert str(one.relay.advertise) == "http://gateway-0.gateway-nodes.gateway.svc:8080"
    assert refused(one) == []
    ports = {port["name"]: port["containerPort"] for port in container(node())["ports"]}
    assert ports == {"devices": one.devices.listen.port, "admin": one.admin.listen.port}
    names = {variable["name"] for variable in container(node())["env"]}
    assert {one.relay.secret_env, one.admin.token_env} <= names


def test_a_node_has_time_to_drain() -> None:
    pause_s = container(node())["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = pause_s + config_of("gateway-0").devices.drain_s + STOP_MARGIN_S
    assert node()["spec"]["terminationGracePeriodSeconds"] >= needed_s


def test_a_node_has_memory_for_all_that_it_may_hold() -> None:
    config, limits = config_of("gateway-0"), container(node())["resources"]["limits"]
    needed = config.devices.max_devices * BYTES_PER_DEVICE + OF_THE_PROCESS_BYTES
    needed += config.commands.max_bytes_per_node + config.mqtt.max_waiting_bytes
    assert int(limits["memory"].removesuffix("Mi")) << 20 >= needed


@overlays
def test_nodes_may_reach_the_broker_and_the_broker_lets_them(overlay: str) -> None:
    policies = kinds(overlay, "NetworkPolicy")
    (out,) = [rule for rule in policies["gateway"]["spec"]["egress"] if {"port": 1883} in rule["ports"]]
    (broker,) = chosen(overlay, out["to"][0]["podSelector"]["matchLabels"])
    (mqtt,) = [port for port in container(broker)["ports"] if port["name"] == "mqtt"]
    assert mqtt["containerPort"] == 1883
    (policy,) = [
        found
        for found in policies.values()
        if found["spec"]["podSelector"]["matchLabels"].items() <= broker["metadata"]["labels"].items()
    ]
    (into,) = [rule for rule in policy["spec"]["ingress"] if {"port": "mqtt"} in rule["ports"]]
    assert any(
        peer["podSelector"]["matchLabels"].items() <= node(overlay)["metadata"]["labels"].items()
        for peer in into["from"]
    )


def test_what_it_scales_by_is_measured(tmp_path: Path) -> None:
    """Each metric has a rule of the adapter, of a metric that there is, in a query that Prometheus understands."""
    adapter = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text("utf-8"))
    rules = {rule["name"]["as"]: rule for rule in adapter["rules"]}
    metrics = kinds("mosquitto", "HorizontalPodAutoscaler")["gateway"]["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in metrics} == set(rules)
    documented = (DEPLOY / "METRICS.md").read_text("utf-8")
    queries = []
    for name, rule in rules.items():
        series = rule["seriesQuery"].partition("{")[0]
        assert f"`{series.removesuffix('_bucket')}`" in documented
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        query = query.replace("<<.LabelMatchers>>", 'namespace="gateway",pod=~"gateway-0"')
        queries.append({"record": name, "expr": query})
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": queries}]}))
    done = subprocess.run(
        (program("promtool"), "check", "rules", str(path)), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
