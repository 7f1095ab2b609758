"""Deploying a flow to Argo Workflows, of either form of schedules: whole, or not at all."""

import functools
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import argo_schemas
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from kubernetes_api import NAMESPACE, Cluster
from kubernetes_pods import SCHEMAS
from ready_cluster import answering, ready_cluster
from tiny_flow import WHERE, deploy_tiny_flow, settle

from steps import argo
from steps.cluster import Cluster as Connection
from steps.cluster import ClusterError
from steps.command import main

BY_EVENT = '@trigger(event="new-text")'
WEEKLY = '@schedule(cron="0 3 * * 1")'
METAFLOWS_OWN = ("error-", "success-")  # pods after a run, which no profile can say anything of


@pytest.fixture
def cluster(s3: Any, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with answering() as mlflow, ready_cluster(tmp_path, monkeypatch, s3=s3_endpoint, mlflow=mlflow.url) as found:
        settle(tmp_path, monkeypatch)
        yield found


@pytest.fixture
def deploy(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Deploy the tiny flow with a decorator to Argo; returns all that was printed."""
    return functools.partial(deploy_tiny_flow, capfd, "argo-workflows")


def kept(cluster: Cluster) -> dict[str, list[str]]:
    return {plural: sorted(objects) for plural, objects in cluster.argo_kept.items()}


def test_where_no_server_can_be_shared_the_remedy_is_one_that_deploy_has(
    deploy: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no --tracking_uri."""
    settle(tmp_path, monkeypatch, tracking_uri="sqlite:///mlflow.db")
    shown = deploy(WEEKLY, code=1)
    assert 'got sqlite:///mlflow.db -> "tracking_uri" in the file of --defaults; or MLFLOW_TRACKING_URI: ' in shown
    assert "--tracking_uri" not in shown


def test_on_argo_4_the_schedule_is_a_list_and_an_event_can_take_its_place(
    deploy: Callable[..., str], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = deploy(WEEKLY, "--create=--max-workers=7")
    assert "ok schedule 0 3 * * 1 taken as a list, `schedules`, which Argo Workflows 4 wants" in shown
    assert "failed" not in shown and cluster.unknown == []
    assert kept(cluster) == {"workflowtemplates": ["tinyflow"], "cronworkflows": ["tinyflow"], "sensors": []}
    assert cluster.argo_kept["cronworkflows"]["tinyflow"]["spec"]["schedules"] == ["0 3 * * 1"]
    assert cluster.argo_kept["workflowtemplates"]["tinyflow"]["spec"]["parallelism"] == 7
    set_events(monkeypatch)
    deploy(BY_EVENT)
    assert kept(cluster)["sensors"] == ["tinyflow"]
    assert cluster.argo_kept["cronworkflows"]["tinyflow"]["spec"]["suspend"] is True


def set_events(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVENT", "EVENT_SOURCE", "SERVICE_ACCOUNT"):
        monkeypatch.setenv(f"METAFLOW_ARGO_EVENTS_{name}", "metaflow")


def test_a_schedule_that_is_refused_leaves_no_template_behind(deploy: Callable[..., str], cluster: Cluster) -> None:
    cluster.argo_trouble["cronworkflows"] = "admission webhook denied the request: no schedules on holidays"
    shown = deploy(WEEKLY, "--name", "weekly", code=1)
    assert "no schedules on holidays" in shown  # Metaflow's own words
    assert "stopped half-way: workflowtemplates/weekly in training, which was not there before, is removed" in shown
    assert kept(cluster) == {"workflowtemplates": [], "cronworkflows": [], "sensors": []}


def test_what_was_deployed_before_comes_back_and_what_was_not_there_goes(cluster: Cluster) -> None:
    plan = argo.Planned("flow", cron="0 3 * * 1", sensor="flow", sensor_namespace=NAMESPACE)
    metadata = {"name": "flow", "annotations": {"metaflow/owner": "tester"}, "resourceVersion": "0"}
    specs: dict[str, Any] = {
        "workflowtemplates": {"entrypoint": "old"},
        "cronworkflows": {"schedules": ["0 3 * * 1"], "workflowSpec": {"workflowTemplateRef": {"name": "flow"}}},
    }
    for (plural, spec), kind in zip(specs.items(), ("WorkflowTemplate", "CronWorkflow"), strict=True):
        whole = {"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": dict(metadata), "spec": dict(spec)}
        cluster.argo_kept[plural]["flow"] = whole
    before = argo.present(Connection(), NAMESPACE, plan)
    cluster.argo_kept["workflowtemplates"]["flow"]["spec"] = {"entrypoint": "new"}
    del cluster.argo_kept["cronworkflows"]["flow"]
    cluster.argo_kept["sensors"]["flow"] = {"metadata": dict(metadata), "spec": {}}
    assert argo.restore(Connection(), before) == [
        "workflowtemplates/flow in training is again what it was",
        "cronworkflows/flow in training is again what it was",
        "sensors/flow in training, which was not there before, is removed",
    ]
    for plural, spec in specs.items():
        assert cluster.argo_kept[plural]["flow"]["spec"] == spec
        assert cluster.argo_kept[plural]["flow"]["metadata"]["annotations"] == metadata["annotations"]
    assert cluster.argo_kept["sensors"] == {}
    cluster.argo_kept["workflowtemplates"]["flow"]["spec"] = {"entrypoint": "new"}
    cluster.denied.add(("update", "workflowtemplates"))
    (said,) = argo.restore(Connection(), before)
    assert "workflowtemplates/flow in training could not be put back: workflowtemplates is forbidden" in said


def test_a_sensor_in_the_namespace_that_it_had_before_is_put_back_and_one_lost_call_hinders_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metaflow deletes the old sensor first, wherever the old template says that it is."""
    notes = {"metaflow/sensor_name": "flow", "metaflow/sensor_namespace": "elsewhere"}
    for plural, kind in (("workflowtemplates", "WorkflowTemplate"), ("sensors", "Sensor")):
        metadata = {"name": "flow", "annotations": notes, "resourceVersion": "0"}
        spec = {"entrypoint": "old"} if plural == "workflowtemplates" else {"dependencies": [], "triggers": []}
        whole = {"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        cluster.argo_kept[plural]["flow"] = whole
    plan = argo.Planned("flow", cron="0 3 * * 1", sensor="", sensor_namespace="")
    connection = Connection()
    before = argo.present(connection, NAMESPACE, plan)
    assert ("sensors", "elsewhere", "flow") in before
    del cluster.argo_kept["sensors"]["flow"]
    read = connection.read

    def lost_once(group: str, version: str, plural: str, name: str, *, namespace: str) -> Any:
        if plural == "workflowtemplates":
            raise ClusterError("the cluster does not answer")
        return read(group, version, plural, name, namespace=namespace)

    monkeypatch.setattr(connection, "read", lost_once)
    said = argo.restore(connection, before)
    assert "workflowtemplates/flow in training could not be put back: the cluster does not answer. See to" in said[0]
    assert "flow" in cluster.argo_kept["sensors"]


def test_what_may_not_be_looked_at_is_said_before_anything_is_submitted(
    deploy: Callable[..., str], cluster: Cluster
) -> None:
    cluster.denied.add(("get", "sensors"))
    shown = deploy(WEEKLY, code=1)
    assert "failed may sensors get sensors is not allowed in training" in shown and "nothing was deployed" in shown


def test_an_address_that_is_no_text_is_refused(deploy: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "weekly.json").write_text(json.dumps({**WHERE, "tracking_uri": 5000}))
    assert "http:// or https://; got 5000" in deploy(WEEKLY, code=1)


def test_nothing_is_submitted_where_something_is_missing(
    deploy: Callable[..., str], cluster: Cluster, tmp_path: Path
) -> None:
    cluster.denied.add(("create", "cronworkflows"))
    cluster.has_jobsets = False
    (tmp_path / "weekly.json").write_text(json.dumps({**WHERE, "num_nodes": 2}))
    cluster.argo_resources = {"workflowtemplates"}
    del cluster.secrets["fast-electra"]["MLFLOW_TRACKING_URI"]
    shown = deploy(WEEKLY, code=1)
    assert "failed may cronworkflows create cronworkflows is not allowed" in shown
    assert "failed JobSet controller" in shown
    assert (
        "failed Argo cronworkflows of argoproj.io/v1alpha1 are not served; a deployment needs them -> kubectl" in shown
    )
    assert "failed mlflow, for the pods no Secret of the profile holds MLFLOW_TRACKING_URI" in shown
    assert shown.endswith("nothing was deployed ") and "Deploying" not in shown
    (tmp_path / "weekly.json").write_text('{"store": ".fast_electra"}')
    shown = deploy(WEEKLY, code=1)
    assert (
        "failed store must start with one of s3://, which every machine reaches; got .fast_electra -> name it" in shown
    )
    assert "failed corpus must start with one of s3://, hub:, pydocs" in shown
    assert kept(cluster) == {"workflowtemplates": [], "cronworkflows": [], "sensors": []}


def test_a_flow_that_cannot_be_described_and_files_that_cannot_be_read_are_said(
    deploy: Callable[..., str], tmp_path: Path
) -> None:
    assert "cannot be described for argo-workflows" in (shown := deploy("@nobody", code=2)) and "nobody" in shown
    assert "no flow can be read at nowhere.py" in run_main("nowhere.py", "--to", "argo-workflows")
    words = ("tiny_flow.py", "--to", "step-functions", "--defaults", "nowhere.json")
    assert "no parameters can be read at nowhere.json" in run_main(*words)


def run_main(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "steps.command", "deploy", *words], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize(
    ("version", "setting", "state", "is_list", "message"),
    [
        (4, "False", "ok", True, "which Argo Workflows 4 wants"),
        (3, "True", "ok", False, "as Argo Workflows before 3.6 wants it"),
        (36, "True", "ok", True, "METAFLOW_ARGO_WORKFLOWS_USE_SCHEDULES is True"),
        (36, "False", "ok", False, "METAFLOW_ARGO_WORKFLOWS_USE_SCHEDULES is False"),
        (36, None, "failed", False, "does not say which its Argo reads"),
    ],
)
def test_the_form_of_schedules_is_the_clusters_to_say_and_never_guessed(
    version: int,
    setting: str | None,
    state: str,
    is_list: bool,
    message: str,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.argo = version
    if setting is not None:
        monkeypatch.setenv("METAFLOW_ARGO_WORKFLOWS_USE_SCHEDULES", setting)
    (_, check), found = argo.check_argo(Connection(), NAMESPACE, template(cron="0 3 * * 1"))
    assert (check.state, found) == (state, is_list) and message in check.found
    assert kept(cluster)["cronworkflows"] == []


def test_a_template_is_rehearsed_strictly_and_unknown_fields_are_named(cluster: Cluster) -> None:
    cluster.argo_is_strict_on.add("parallelism")
    ((check, *_), _) = argo.check_argo(Connection(), NAMESPACE, template(parallelism=3))
    assert check.state == "note" and 'unknown field "spec.parallelism"' in check.found
    cluster.denied.add(("create", "workflowtemplates"))
    ((check, *_), _) = argo.check_argo(Connection(), NAMESPACE, template())
    assert check.state == "failed" and "workflowtemplates is forbidden" in check.found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"schedules": ["0 3 * * 1"], "schedule": "0 3 * * 1"}, "does not know: spec.schedule$"),
        ({"schedules": "0 3 * * 1"}, "schedules"),  # no list
        ({"schedules": ["0 3 * * 1"], "workflowSpec": {"templates": [{"name": "a", "contaner": {}}]}}, "contaner"),
    ],
)
def test_the_double_refuses_what_argo_does_not_know(spec: dict[str, Any], message: str) -> None:
    kind = {"apiVersion": "argoproj.io/v1alpha1", "kind": "CronWorkflow", "metadata": {"name": "some"}}
    whole = {"workflowSpec": {"workflowTemplateRef": {"name": "some"}}, **spec}
    with pytest.raises(ValueError, match=message):
        argo_schemas.validate({**kind, "spec": whole})


def template(cron: str = "", **spec: Any) -> dict[str, Any]:
    notes = {"metaflow/cron": json.dumps({"schedule": cron, "tz": None})} if cron else {}
    metadata = {"name": "some", "annotations": notes}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowTemplate", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("flow", "more", "cron"),
    [
        ("pretrain_flow.py", [], ""),
        ("retrain_flow.py", ["--config_value", "deployment", '{"cron": "5 4 * * *"}'], "5 4 * * *"),
    ],
)
def test_every_pod_of_a_flow_on_argo_is_valid_bounded_and_unprivileged(
    flow: str, more: list[str], cron: str, cluster: Cluster, s3: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    profile = str(ROOT / "infra" / "profiles" / "kubernetes.json")
    words = ["deploy", str(ROOT / "flows" / flow), "--to", "argo-workflows", "--profile", profile, "--only_json"]
    assert main([*words, "--defaults", "weekly.json", *more]) == 0
    found = json.loads(capfd.readouterr().out)
    argo_schemas.validate(found)
    assert argo.planned(found).cron == cron
    made = {each["name"]: each for each in found["spec"]["templates"] if "container" in each or "resource" in each}
    ours = {name: each for name, each in made.items() if not name.startswith(METAFLOWS_OWN)}
    assert {"start", "tokenize", "pretrain", "finetune", "register", "end"} <= set(ours)
    for name, each in ours.items():
        for job in jobs_of(each):
            kubernetes_validate.validate(job, SCHEMAS, strict=True)
            pod = job["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert container["securityContext"]["runAsNonRoot"] is True, name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"]), name
            # Pods that Argo starts itself report to it; those of a JobSet do not, and have no token.
            account = "fast-electra-argo" if "container" in each else pod["serviceAccountName"]
            assert pod["serviceAccountName"] == account and account.startswith("fast-electra"), name
    assert configs_kept(made["start"], s3)["defaults"][0] == WHERE  # what the runs of a schedule are given


def jobs_of(template: Any) -> list[Any]:
    """The pods that a template of Argo's makes, as Jobs."""
    if "resource" in template:
        manifest = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "1", template["resource"]["manifest"]))
        jobs = [argo_schemas.without_nulls(each["template"]) for each in manifest["spec"]["replicatedJobs"]]
    else:
        names = ("serviceAccountName", "nodeSelector", "tolerations", "volumes", "activeDeadlineSeconds")
        pod = {"containers": [template["container"]], **{name: template[name] for name in names if name in template}}
        metadata = {key: template["metadata"][key] for key in ("labels", "annotations")}
        jobs = [
            {
                "spec": {
                    "template": {
                        "metadata": metadata,
                        "spec": {**argo_schemas.without_nulls(pod), "restartPolicy": "Never"},
                    }
                }
            }
        ]
    return [{"apiVersion": "batch/v1", "kind": "Job", **job, "metadata": {"name": "some"}} for job in jobs]


def configs_kept(pod: Any, s3: Any) -> Any:
    """The values of the flow's Configs in the code package that a pod is sent."""
    values = {each["name"]: each.get("value", "") for each in pod["container"]["env"]}
    bucket, _, key = values["METAFLOW_CODE_URL"].removeprefix("s3://").partition("/")
    package = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        file = archive.extractfile(".mf_meta/CONFIG")
        assert file is not None
        return json.load(file)["user_configs"]
