"""What `infra/kubernetes` would make on a cluster: valid to the letter, locked down, in step with terraform."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from steps.probe import ask_mlflow

KUBERNETES = ROOT / "infra" / "kubernetes"
TERRAFORM = ROOT / "infra" / "terraform"
OVERLAYS = ("local", "aws")
VERSION = "1.35"  # terraform's kubernetes_version
PINNED = re.compile(r"/v\d+\.\d+\.\d+/")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
pytestmark = needs_kubectl


@cache
def built(folder: Path) -> list[Any]:
    """The objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def overlay(name: str) -> list[Any]:
    return built(KUBERNETES / "overlays" / name)


def pods(objects: list[Any]) -> dict[str, Any]:
    """Pod specs by kind/name."""
    found = {}
    for thing in objects:
        if thing["kind"] in ("Deployment", "StatefulSet"):
            found[f"{thing['kind']}/{thing['metadata']['name']}"] = thing["spec"]["template"]["spec"]
        elif thing["kind"] == "CronJob":
            found[f"CronJob/{thing['metadata']['name']}"] = thing["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


def containers(pod: Any) -> list[Any]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def of(objects: list[Any], kind: str, name: str) -> Any:
    (found,) = [thing for thing in objects if thing["kind"] == kind and thing["metadata"]["name"] == name]
    return found


@pytest.fixture
def with_components(tmp_path: Path) -> list[Any]:
    """The aws overlay with everything that is off by default."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    path = copy / "overlays" / "aws" / "kustomization.yaml"
    text = path.read_text()
    assert "\n# components:" in text
    path.write_text(text.replace("\n# components:", "\ncomponents:"))
    return built(path.parent)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_is_what_kubernetes_takes(name: str) -> None:
    for thing in overlay(name):
        kubernetes_validate.validate(thing, VERSION, strict=True)


def test_the_validation_finds_a_slip() -> None:
    server = json.loads(json.dumps(of(overlay("aws"), "Deployment", "mlflow")))
    server["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(server, VERSION, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_locked_bounded_and_of_a_version_that_stays(name: str) -> None:
    found = pods(overlay(name))
    assert {"Deployment/mlflow", "CronJob/mlflow-backup"} <= set(found)
    for where, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where
            tag = container["image"].rpartition(":")[2]
            assert ":" in container["image"] and tag != "latest" and re.search(r"\d", tag), container["image"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_serves_is_probed_and_may_be_drained(name: str) -> None:
    for where, pod in pods(overlay(name)).items():
        if not where.startswith("CronJob") and where != "Deployment/cluster-autoscaler":
            assert all({"readinessProbe", "livenessProbe"} <= set(container) for container in pod["containers"]), where
    replicas = of(overlay(name), "Deployment", "mlflow")["spec"]["replicas"]
    budget = of(overlay(name), "PodDisruptionBudget", "mlflow")["spec"]
    assert budget.get("maxUnavailable", 0) or budget["minAvailable"] < replicas


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_is_written_down(name: str) -> None:
    objects = overlay(name)
    assert [thing for thing in objects if thing["kind"] == "Secret"] == []
    for pod in pods(objects).values():
        for entry in (entry for container in containers(pod) for entry in container.get("env", [])):
            secret = re.search(r"PASSWORD|SECRET|KEY|TOKEN|STORE_URI|DATABASE", entry["name"])
            assert not secret or "secretKeyRef" in entry["valueFrom"], entry


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_namespace_of_ours_refuses_by_default_and_has_a_standard(name: str) -> None:
    objects = overlay(name)
    spaces = {
        thing["metadata"]["name"]: thing["metadata"]["labels"] for thing in objects if thing["kind"] == "Namespace"
    }
    assert set(spaces) == {"fast-electra", "mlflow"}
    assert spaces["mlflow"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for space in spaces:
        (policy,) = [
            thing["spec"]
            for thing in objects
            if thing["kind"] == "NetworkPolicy"
            and thing["metadata"] == {**thing["metadata"], "name": "nothing", "namespace": space}
        ]
        assert policy == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for thing in objects:
        for way in thing.get("spec", {}).get("egress", []) if thing["kind"] == "NetworkPolicy" else []:
            for block in (peer["ipBlock"] for peer in way.get("to", []) if "ipBlock" in peer):
                assert block["cidr"] != "0.0.0.0/0" or block["except"] == ["169.254.169.254/32"]


def test_nobody_may_do_everything_and_only_one_named_secret_is_read(with_components: list[Any]) -> None:
    for thing in with_components:
        for rule in thing.get("rules", []) if thing["kind"] in ("Role", "ClusterRole") else []:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], thing["metadata"]["name"]
            assert "secrets" not in rule["resources"] or rule["resourceNames"] == ["fast-electra"]
    task = of(with_components, "ServiceAccount", "fast-electra")
    assert task["automountServiceAccountToken"] is False
    bound = [subject for thing in with_components if thing["kind"].endswith("Binding") for subject in thing["subjects"]]
    assert ("ServiceAccount", "fast-electra") not in [(subject["kind"], subject["name"]) for subject in bound]


def test_people_may_do_what_the_list_of_permissions_asks_for() -> None:
    asked = (KUBERNETES / "permissions.md").read_text().split("## ")
    for heading, whose in (("Whoever starts", "users"), ("Whoever deploys", "deployers"), ("People who look", "")):
        (section,) = [part for part in asked if part.startswith(heading)]
        row = r"^\| (`[^|]*`|core) \| (`[^|]*`) \| ([a-z, ]+?)(?: \(.*\))? \|(?: `([a-z]+)`)?"
        rows = re.findall(row, section, re.MULTILINE)
        assert len(rows) >= 4
        for group, resources, verbs, named in rows:
            rules = of(overlay("aws"), "Role", whose or named)["rules"]
            group = "" if group == "core" else group.strip("`")
            for resource in re.findall(r"`([^`]+)`", resources):
                granted = {
                    verb
                    for rule in rules
                    if group in rule["apiGroups"] and resource in rule["resources"]
                    for verb in rule["verbs"]
                }
                assert set(re.split(r", *", verbs.strip())) <= granted, (whose or named, resource)


def test_what_others_make_is_of_a_release_that_stays() -> None:
    resources = yaml.safe_load((KUBERNETES / "third-party" / "kustomization.yaml").read_text())["resources"]
    fetched = [resource for resource in resources if resource.startswith("https://")]
    assert len(fetched) == 4 and all(PINNED.search(resource) for resource in fetched)
    for part in ("jobset", "k8s-device-plugin", "argo-workflows", "argo-events"):
        assert any(part in resource for resource in fetched)


NVIDIAS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: nvidia-device-plugin-daemonset, namespace: kube-system}
spec:
  selector: {matchLabels: {name: nvidia-device-plugin-ds}}
  template:
    metadata: {labels: {name: nvidia-device-plugin-ds}}
    spec:
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
      containers: [{name: nvidia-device-plugin-ctr, image: nvcr.io/nvidia/k8s-device-plugin}]
"""
ARGOS = "{apiVersion: v1, kind: ConfigMap, metadata: {name: workflow-controller-configmap, namespace: argo}}"


def test_the_device_plugin_runs_on_every_node_with_a_gpu(tmp_path: Path) -> None:
    """Stand-ins take the place of what would be fetched: NVIDIA's is cut down to what decides where its pods run."""
    path = shutil.copytree(KUBERNETES / "third-party", tmp_path / "third-party") / "kustomization.yaml"
    (path.parent / "stand_ins.yaml").write_text(f"{NVIDIAS}---\n{ARGOS}\n")
    kustomization = yaml.safe_load(path.read_text())
    kustomization["resources"] = ["namespaces.yaml", "stand_ins.yaml"]
    path.write_text(yaml.safe_dump(kustomization))
    plugin = of(built(path.parent), "DaemonSet", "nvidia-device-plugin-daemonset")
    tolerated = {each["key"] for each in plugin["spec"]["template"]["spec"]["tolerations"]}
    nodes = (TERRAFORM / "modules" / "cluster" / "nodes.tf").read_text()
    assert tolerated == set(re.findall(r'_taint += { "([^"]+)"', nodes))


def test_the_settings_are_those_that_terraform_gives() -> None:
    given = re.search(r'output "kubernetes_settings".*?\n}\n', (TERRAFORM / "outputs.tf").read_text(), re.DOTALL)
    assert given is not None
    names = set(re.findall(r"^ +([A-Z_]+) += ", given[0], re.MULTILINE))
    lines = (KUBERNETES / "overlays" / "aws" / "settings.env").read_text().splitlines()
    assert names == {line.partition("=")[0] for line in lines}


def test_settings_reach_accounts_images_and_the_autoscaler(tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    path = copy / "overlays" / "aws" / "settings.env"
    path.write_text(path.read_text().replace("111122223333", "444455556666").replace("eu-central-1", "us-west-2"))
    text = yaml.safe_dump_all(built(path.parent))
    assert "111122223333" not in text and "eu-central-1" not in text and "set-by-a-replacement" not in text


def test_the_pools_accounts_and_taints_of_the_profiles_exist() -> None:
    nodes = (TERRAFORM / "modules" / "cluster" / "nodes.tf").read_text()
    pools = set(re.findall(r"^    ([a-z-]+) += { gpu = ", nodes, re.MULTILINE))
    taints = set(re.findall(r'_taint += { "([^"]+)"', nodes))
    accounts = {thing["metadata"]["name"] for thing in overlay("aws") if thing["kind"] == "ServiceAccount"}
    for path in (ROOT / "infra" / "profiles").glob("kubernetes*.json"):
        profile = json.loads(path.read_text())
        assert {profile["every_step"]["service_account"], profile["argo_service_account"]} <= accounts
        for step in profile["steps"].values():
            assert step["node_selector"]["fast-electra/pool"] in pools
            assert {toleration["key"] for toleration in step.get("tolerations", [])} <= taints


def test_whoever_may_announce_text_reaches_the_webhook_from_the_jobs_namespace_too(with_components: list[Any]) -> None:
    """There nothing goes out but what a policy names."""
    (way_in,) = of(with_components, "NetworkPolicy", "webhook")["spec"]["ingress"]
    out = of(with_components, "NetworkPolicy", "to-webhook")
    assert out["metadata"]["namespace"] == "fast-electra"
    assert [out["spec"]["podSelector"]] == [each["podSelector"] for each in way_in["from"]]
    (way_out,) = out["spec"]["egress"]
    assert way_out["ports"] == way_in["ports"]
    assert way_out["to"] == [{"podSelector": of(with_components, "NetworkPolicy", "webhook")["spec"]["podSelector"]}]


def test_the_names_of_the_events_are_those_of_metaflows_settings(with_components: list[Any]) -> None:
    outputs = (TERRAFORM / "outputs.tf").read_text()
    told = dict(re.findall(r'METAFLOW_ARGO_EVENTS_([A-Z_]+) += "([^"]+)"', outputs))
    source = of(with_components, "EventSource", told["EVENT_SOURCE"])
    assert (
        source["spec"]["eventBusName"]
        == told["EVENT_BUS"]
        == of(with_components, "EventBus", "default")["metadata"]["name"]
    )
    webhook = source["spec"]["webhook"][told["EVENT"]]
    assert told["WEBHOOK_URL"].endswith(f":{webhook['port']}{webhook['endpoint']}")
    assert f"{told['EVENT_SOURCE']}-eventsource-svc." in told["WEBHOOK_URL"]  # as Argo Events names the service
    of(with_components, "ServiceAccount", told["SERVICE_ACCOUNT"])
    for thing in with_components:
        if not thing["apiVersion"].startswith("argoproj.io"):
            kubernetes_validate.validate(thing, VERSION, strict=True)


def test_a_dump_goes_to_s3_and_what_is_none_is_refused(s3: Any, tmp_path: Path) -> None:
    script = KUBERNETES / "base" / "mlflow" / "scripts" / "upload.py"
    dump = tmp_path / "mlflow.dump"
    environment = {**os.environ, "BACKUPS_ADDRESS": "s3://bucket/mlflow"}
    for content in (b"", b"PGDMP", b"pg_dump: error " * 100):
        dump.write_bytes(content)
        refused = subprocess.run([sys.executable, script, dump], env=environment, capture_output=True, text=True)
        assert refused.returncode != 0 and "is no dump" in refused.stderr
    dump.write_bytes(b"PGDMP" + bytes(5000))
    done = subprocess.run([sys.executable, script, dump], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (item,) = s3.list_objects_v2(Bucket="bucket")["Contents"]
    assert re.fullmatch(r"mlflow/\d{4}/\d\d/\d{4}-\d\d-\d\dT\d{6}Z\.dump", item["Key"]) and item["Size"] == 5005


def test_the_server_starts_by_its_manifest_keeps_artifacts_in_s3_and_refuses_strange_hosts(
    s3: Any, tmp_path: Path
) -> None:
    (container,) = pods(overlay("aws"))["Deployment/mlflow"]["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "ARTIFACTS_ADDRESS": "s3://bucket/mlflow"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    for entry in container["env"]:
        source = next(iter(entry.get("valueFrom", {"": {"key": ""}}).values()))
        environment[entry["name"]] = entry.get("value") or values[source["key"]]
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # the image's
    swapped = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}", "--workers=2": "--workers=1"}
    assert set(swapped) <= set(container["command"])
    words = [swapped.get(word, word) for word in container["command"]]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            health = container["readinessProbe"]["httpGet"]["path"]
            deadline = time.monotonic() + 90
            while answer(port, health, host="10.42.0.9:5000") != 200:  # the kubelet asks by the pod's address
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
            artifact = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/note.txt"
            listing = "/api/2.0/mlflow/experiments/search?max_results=1"
            ours = "mlflow.mlflow.svc.cluster.local:5000"
            assert answer(port, artifact, host=ours, data=b"kept") == 200
            assert answer(port, listing, host="attacker.example") == 403
            assert answer(port, listing, host=ours) == 200
            assert ask_mlflow(f"http://127.0.0.1:{port}")[0] == "ok"  # the preflight's question is one that it knows
        finally:
            os.killpg(server.pid, 15)
            server.wait()
    (item,) = s3.list_objects_v2(Bucket="bucket")["Contents"]
    assert item["Key"] == "mlflow/1/run/artifacts/note.txt" and item["Size"] == 4


def answer(port: int, path: str, *, host: str, data: bytes | None = None) -> int:
    """The status of a request to the server under another name; 0 while nothing listens."""
    method = "GET" if data is None else "PUT"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Host": host}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0
