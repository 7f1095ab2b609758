"""Deploying a flow to AWS Step Functions, on a mock of AWS: whole, or not at all."""

import functools
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from ready_cluster import answering, set_metaflow
from tiny_flow import deploy_tiny_flow, settle

from steps import step_functions

WEEKLY = '@schedule(cron="0 3 ? * 2 *")'


@pytest.fixture
def mlflow() -> Iterator[str]:
    with answering() as found:
        yield found.url


@pytest.fixture
def aws(
    s3: Any, s3_endpoint: str, mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """A queue, a table and roles on the mock of AWS, and Metaflow's settings for them; makes clients."""
    set_metaflow(tmp_path, monkeypatch, s3=s3_endpoint, mlflow=mlflow)
    settle(tmp_path, monkeypatch, tracking_uri=mlflow)
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}

    def client(service: str) -> Any:
        return boto3.client(service, endpoint_url=s3_endpoint, **keys)

    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = client("iam").create_role(RoleName="all", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    instance = client("iam").create_instance_profile(InstanceProfileName="all")["InstanceProfile"]["Arn"]
    subnet = client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    group = client("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"]
    resources = {
        "type": "EC2", "minvCpus": 0, "maxvCpus": 4, "instanceTypes": ["m5.large"], "instanceRole": instance,
        "subnets": [subnet], "securityGroupIds": [group],
    }  # fmt: skip
    batch, place = client("batch"), {"computeEnvironmentName": "compute", "type": "MANAGED", "serviceRole": role}
    made = batch.create_compute_environment(**place, state="ENABLED", computeResources=resources)
    order = [{"order": 1, "computeEnvironment": made["computeEnvironmentArn"]}]
    for pool in ("cpu", "gpu"):
        name = f"fast-electra-{pool}"
        batch.create_job_queue(jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order)
    client("dynamodb").create_table(
        TableName="table",
        AttributeDefinitions=[{"AttributeName": "pathspec", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pathspec", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    settings = dict.fromkeys(("ECS_S3_ACCESS_IAM_ROLE", "SFN_IAM_ROLE", "EVENTS_SFN_ACCESS_IAM_ROLE"), role)
    settings |= {
        "BATCH_JOB_QUEUE": "fast-electra-cpu",
        "SFN_DYNAMO_DB_TABLE": "table",
        "BATCH_CONTAINER_IMAGE": "fast-electra:cpu",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"METAFLOW_{name}", value)
    return client


@pytest.fixture
def deploy(aws: Callable[[str], Any], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Deploy the tiny flow with a decorator to Step Functions; returns all that was printed."""
    return functools.partial(deploy_tiny_flow, capfd, "step-functions")


def test_a_flow_is_created_triggered_and_unscheduled(
    deploy: Callable[..., str], aws: Callable[[str], Any], tmp_path: Path
) -> None:
    shown = deploy(WEEKLY)
    assert "ok AWS Batch the queue fast-electra-gpu takes jobs" in shown and "ok DynamoDB the table table is" in shown
    (machine,) = aws("stepfunctions").list_state_machines()["stateMachines"]
    rule = aws("events").describe_rule(Name="TinyFlow")
    assert (machine["name"], rule["ScheduleExpression"], rule["State"]) == ("TinyFlow", "cron(0 3 ? * 2 *)", "ENABLED")
    (target,) = aws("events").list_targets_by_rule(Rule="TinyFlow")["Targets"]
    assert target["Arn"] == machine["stateMachineArn"]

    trigger = [sys.executable, "tiny_flow.py", "step-functions", "trigger"]
    done = subprocess.run(trigger, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    (execution,) = aws("stepfunctions").list_executions(stateMachineArn=machine["stateMachineArn"])["executions"]
    assert f"sfn-{execution['name']}" in done.stdout + done.stderr

    deploy("")
    assert aws("events").describe_rule(Name="TinyFlow")["State"] == "DISABLED"


def test_a_refused_schedule_leaves_no_state_machine_behind(
    deploy: Callable[..., str], aws: Callable[[str], Any], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(s3_endpoint, "AWSEvents.PutRule") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        shown = deploy(WEEKLY, code=1)
    assert "no rules today" in shown and "the state machine TinyFlow is removed" in shown
    assert aws("stepfunctions").list_state_machines()["stateMachines"] == []
    assert aws("events").list_rules()["Rules"] == []


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        (1_100_000, 0, "bytes, AWS takes 1048576"),
        (8000, 0, "ok"),
        (8000, 200, r"command and environment of tokenize have 82\d\d bytes, ECS takes 8192"),
    ],
)
def test_a_machine_and_jobs_that_are_larger_than_aws_takes_are_refused(
    command: int, environment: int, said: str
) -> None:
    job = {"Command": ["x" * command], "Environment": [{"Name": "A", "Value": "x" * environment}]}
    inside = {"tokenize": {"Type": "Task", "Parameters": {"ContainerOverrides": job}}}
    states = {"ask": {"Type": "Task", "Parameters": {}}, "map": {"Type": "Map", "Iterator": {"States": inside}}}
    check = step_functions.check_size({"States": states})
    assert check.state == ("ok" if said == "ok" else "failed")
    assert said == "ok" or re.search(said, check.found)


def test_what_cannot_be_looked_at_is_said_and_nothing_is_made(
    deploy: Callable[..., str], aws: Callable[[str], Any], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(s3_endpoint, "AWSEvents.DescribeRule") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        shown = deploy(WEEKLY, code=2)
        done = step_functions.restore("TinyFlow", step_functions.Present(None, None, []))
    assert "fast-electra deploy: what is deployed as TinyFlow cannot be looked at: " in shown
    assert "no rules today" in shown and aws("stepfunctions").list_state_machines()["stateMachines"] == []
    (said,) = done
    assert said.startswith("nothing could be put back: what is deployed as TinyFlow cannot be looked at")


def test_a_changed_machine_and_its_rule_are_put_back(aws: Callable[[str], Any]) -> None:
    states, events = aws("stepfunctions"), aws("events")
    role = os.environ["METAFLOW_SFN_IAM_ROLE"]
    old, new = (json.dumps({"StartAt": name, "States": {name: {"Type": "Succeed"}}}) for name in ("old", "new"))
    address = states.create_state_machine(name="flow", definition=old, roleArn=role)["stateMachineArn"]
    events.put_rule(Name="flow", ScheduleExpression="cron(0 3 ? * 2 *)", State="ENABLED")
    events.put_targets(Rule="flow", Targets=[{"Id": "flow", "Arn": address, "RoleArn": role}])
    before = step_functions.present("flow")
    states.update_state_machine(stateMachineArn=address, definition=new)
    events.put_rule(Name="flow", ScheduleExpression="cron(0 4 ? * 2 *)", State="DISABLED")
    events.put_targets(Rule="flow", Targets=[{"Id": "flow", "Arn": address + "-other", "RoleArn": role}])
    done = step_functions.restore("flow", before)
    assert done == ["the rule flow is again what it was", "the state machine flow is again what it was"]
    after = step_functions.present("flow")
    assert after.machine is not None and after.machine["definition"] == old
    assert after.rule is not None and after.rule["ScheduleExpression"] == "cron(0 3 ? * 2 *)"
    assert after.rule["State"] == "ENABLED" and after.targets == before.targets


def test_what_is_missing_is_said_before_anything_is_made(
    deploy: Callable[..., str], aws: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = aws("batch")
    batch.update_job_queue(jobQueue="fast-electra-gpu", state="DISABLED")
    batch.delete_job_queue(jobQueue="fast-electra-gpu")
    monkeypatch.setenv("METAFLOW_SFN_DYNAMO_DB_TABLE", "nowhere")
    shown = deploy(WEEKLY, code=1)
    assert "failed AWS Batch there is no queue fast-electra-gpu -> terraform apply" in shown
    assert "failed DynamoDB there is no table nowhere" in shown and shown.endswith("nothing was deployed ")
    monkeypatch.delenv("METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE")
    shown = deploy(WEEKLY, code=1)
    assert (
        "failed settings not set: METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE -> METAFLOW_PROFILE=cloud fast-electra" in shown
    )


@pytest.mark.parametrize(
    ("environment", "given", "state"),
    [
        ({}, None, "failed"),
        ({}, "sqlite:///mlflow.db", "failed"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.mlflow.svc.cluster.local:5000"}, None, "failed"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.test:5000"}, None, "ok"),
        ({}, "http://mlflow.test:5000", "ok"),
    ],
)
def test_jobs_of_batch_must_know_a_server_outside_the_cluster(
    environment: dict[str, str], given: str | None, state: str
) -> None:
    profile = {"runs_on": "batch", "every_step": {"environment": environment}}
    assert step_functions.check_reaches_mlflow(profile, given).state == state


@contextmanager
def refusing(behind: str, action: str) -> Iterator[str]:
    """An endpoint that hands everything on to the one behind it but calls of one action, which it refuses."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("X-Amz-Target") == action:
                error = b'{"__type": "LimitExceededException", "message": "no rules today"}'
                return self._say(400, {}, error)
            request = urllib.request.Request(behind + self.path, body or None, dict(self.headers), method=self.command)
            try:
                with urllib.request.urlopen(request) as response:
                    self._say(response.status, dict(response.headers), response.read())
            except urllib.error.HTTPError as error:
                with error:
                    self._say(error.code, dict(error.headers), error.read())

        def _say(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", headers.get("Content-Length", str(len(data))))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
