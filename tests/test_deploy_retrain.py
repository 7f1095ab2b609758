"""RetrainFlow as both schedulers are given it: one file, by the clock or by an event, whole and valid."""

import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
from argo_schemas import without_nulls
from conftest import ROOT
from kubernetes_api import Cluster
from kubernetes_pods import SCHEMAS
from test_deploy import METAFLOWS_OWN, cluster, set_events  # noqa: F401 -- fixtures
from test_deploy_step_functions import aws, mlflow  # noqa: F401 -- fixtures

from steps.command import main

FLOW = str(ROOT / "flows" / "retrain_flow.py")
STEPS = {
    "start", "choose", "list_texts", "tokenize", "gather_tokens", "list_candidates", "score_auxiliary",
    "freeze_auxiliary", "pretrain", "finetune", "gather_scores", "register", "end",
}  # fmt: skip
HOOKS = {"success-tell-success": "tell_success", "error-tell-failure": "tell_failure"}


def deploy(capfd: pytest.CaptureFixture[str], *words: str, to: str = "argo-workflows", code: int = 0) -> str:
    profile = ROOT / "infra" / "profiles" / ("kubernetes.json" if to == "argo-workflows" else "batch.json")
    given = ("--profile", str(profile), "--defaults", "weekly.json")
    returned = main(["deploy", FLOW, "--to", to, *given, *words])
    shown = capfd.readouterr()
    assert returned == code, shown
    return shown.out + shown.err


def test_on_argo_it_chooses_is_scheduled_and_tells_of_its_end_and_every_object_is_valid(
    cluster: Cluster,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    deploy(capfd, "--config_value", "deployment", '{"cron": "30 4 * * 1-5", "timezone": "Europe/Berlin"}')
    kept = cluster.argo_kept
    spec = kept["workflowtemplates"]["retrainflow"]["spec"]
    cron = kept["cronworkflows"]["retrainflow"]["spec"]
    assert (cron["schedules"], cron["timezone"], cron["suspend"]) == (["30 4 * * 1-5"], "Europe/Berlin", False)
    assert kept["sensors"] == {}
    pods = {each["name"]: each for each in spec["templates"] if "container" in each}
    assert {name.replace("-", "_") for name in pods if not name.startswith((*METAFLOWS_OWN, *HOOKS))} == STEPS
    gates = _gates(spec)
    assert set(gates) == {"list-texts", "list-texts-foreach-tokenizings", "end"}
    assert "'switch-step'] : nil) == 'list_texts'" in gates["list-texts"]
    assert "'switch-step'] : nil) == 'end'" in gates["end"] and "tasks.register.status}}==Succeeded" in gates["end"]
    for name, function in HOOKS.items():
        command = " ".join(pods[name]["container"]["command"])
        assert f"exit_hook_script retrain_flow.py {function} $RUN_PATHSPEC" in command
        assert {"secretRef": {"name": "fast-electra"}} in without_nulls(pods[name]["container"]["envFrom"])
        _validate_pod({"containers": [pods[name]["container"]]})
    assert {hook["template"] for hook in spec["hooks"].values()} >= set(HOOKS)
    for name in pods.keys() - HOOKS.keys():
        template = pods[name]
        _validate_pod(
            {
                "containers": [template["container"]],
                "nodeSelector": template.get("nodeSelector", {}),
                "tolerations": template.get("tolerations", []),
                "volumes": template.get("volumes", []),
            }
        )
    assert "FAST_ELECTRA_WEBHOOK" not in json.dumps(kept)


def test_tasks_on_argo_tell_nobody_that_they_have_ended(
    cluster: Cluster,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each would try for five minutes where the network lets it through to nobody."""
    deploy(capfd)
    spec = cluster.argo_kept["workflowtemplates"]["retrainflow"]["spec"]
    commands = [" ".join(each["container"]["command"]) for each in spec["templates"] if "container" in each]
    assert [command for command in commands if "auto-emit-argo-events=1" in command] == []
    deploy(capfd, "--create=--auto-emit-argo-events")
    spec = cluster.argo_kept["workflowtemplates"]["retrainflow"]["spec"]
    commands = [" ".join(each["container"]["command"]) for each in spec["templates"] if "container" in each]
    assert len([command for command in commands if "auto-emit-argo-events=1" in command]) == len(STEPS)


def test_a_run_whose_end_would_need_argos_agent_is_refused(
    cluster: Cluster,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    shown = deploy(capfd, "--create=--no-enable-error-msg-capture", code=1)
    assert "failed  end of a run" in shown and "leave --create=--no-enable-error-msg-capture out" in shown
    assert cluster.argo_kept["workflowtemplates"] == {}


def _gates(spec: dict[str, Any]) -> dict[str, str]:
    """The conditions of the tasks that have one."""
    (dag,) = [each["dag"] for each in spec["templates"] if each["name"] == "RetrainFlow"]
    return {task["name"]: task["when"] for task in dag["tasks"] if "when" in task}


def _validate_pod(spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "some"}, "spec": without_nulls(spec)}
    kubernetes_validate.validate(pod, SCHEMAS, strict=True)


def test_an_event_takes_the_place_of_the_clock(
    cluster: Cluster,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_events(monkeypatch)
    deploy(capfd, "--config_value", "deployment", '{"event": "new-text"}')
    assert cluster.argo_kept["cronworkflows"] == {}
    spec = cluster.argo_kept["sensors"]["retrainflow"]["spec"]
    assert set(spec) == {"template", "replicas", "eventBusName", "dependencies", "triggers"}
    (dependency,) = spec["dependencies"]
    assert dependency["eventName"] == "metaflow"
    assert dependency["filters"]["exprs"][0]["expr"] == "name == 'new-text'"
    (trigger,) = spec["triggers"]
    workflow = trigger["template"]["k8s"]["source"]["resource"]
    assert workflow["spec"]["workflowTemplateRef"] == {"name": "retrainflow"}
    pod = {"containers": [{"image": "some", **without_nulls(spec["template"]["container"])}]}
    _validate_pod({**pod, "serviceAccountName": spec["template"]["serviceAccountName"]})


def test_on_step_functions_it_has_no_choice_and_the_same_cron_in_six_fields(
    aws: Callable[[str], Any],  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    deploy(capfd, "--config_value", "deployment", '{"cron": "30 4 * * 1-5"}', to="step-functions")
    (machine,) = aws("stepfunctions").list_state_machines()["stateMachines"]
    description = aws("stepfunctions").describe_state_machine(stateMachineArn=machine["stateMachineArn"])
    jobs = dict(_jobs(json.loads(description["definition"])))
    assert set(jobs) == STEPS
    for job in jobs.values():  # by which the flow knows in its jobs which graph it was deployed with
        names = {each["Name"] for each in job["Parameters"]["ContainerOverrides"]["Environment"]}
        assert "SFN_STATE_MACHINE" in names
    rule = aws("events").describe_rule(Name="RetrainFlow")
    assert (rule["ScheduleExpression"], rule["State"]) == ("cron(30 4 ? * 2-6 *)", "ENABLED")


def _jobs(definition: Any) -> list[tuple[str, Any]]:
    found = []
    for name, state in definition["States"].items():
        if state["Type"] == "Map":
            found += _jobs(state["Iterator"])
        elif "ContainerOverrides" in json.dumps(state):
            found.append((name, state))
        for branch in state.get("Branches", ()):
            found += _jobs(branch)
    return found


def test_what_step_functions_cannot_do_is_said_before_anything_is_made(
    aws: Callable[[str], Any],  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    event = ("--config_value", "deployment", '{"event": "new-text"}')
    assert "is not to be had on AWS Step Functions" in deploy(capfd, *event, to="step-functions", code=2)
    assert aws("stepfunctions").list_state_machines()["stateMachines"] == []
