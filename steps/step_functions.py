"""AWS Step Functions: what a deployment needs there, what it would make, and what was there before."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError
from steps.checks import Check
from steps.metaflow_settings import HOW_TO_SET, setting
from steps.profile import KINDS, options_of

_NEEDED = (
    "METAFLOW_BATCH_JOB_QUEUE", "METAFLOW_ECS_S3_ACCESS_IAM_ROLE", "METAFLOW_SFN_IAM_ROLE",
    "METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE", "METAFLOW_SFN_DYNAMO_DB_TABLE",
)  # fmt: skip
_TRACKING = "MLFLOW_TRACKING_URI"
_LOGGED_IN = "are you logged in, in the right region, and allowed to do this?"
_LARGEST = 1024 * 1024  # bytes of a definition, AWS's limit
_LARGEST_OVERRIDES = 8192  # of a job; ECS says so only when the job is to start
_SHORTEN = "METAFLOW_SFN_COMPRESS_STATE_MACHINE=True puts the commands into S3"
_LONGEST_NAME = 64  # of a rule; Metaflow shortens longer ones by a hash


class Present(NamedTuple):
    """A state machine and its rule as they are; None where there is none."""

    machine: dict[str, Any] | None
    rule: dict[str, Any] | None
    targets: list[dict[str, Any]]


def name_of(machine: Mapping[str, Any]) -> str:
    """The state machine's name, read off its definition.

    Raises:
        ConfigError: it is too long for the schedule's rule to have the same.
    """
    states = machine["States"].values()
    variables = next(
        state["Parameters"]["ContainerOverrides"]["Environment"] for state in states if "Parameters" in state
    )
    name = str(next(each["Value"] for each in variables if each["Name"] == "SFN_STATE_MACHINE"))
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"the state machine's name must have {_LONGEST_NAME} letters at most, got {name}; give --name"
        )
    return name


def check_aws(profile: Mapping[str, Any]) -> list[Check]:
    """Is all set and there that Metaflow, Step Functions and the profile's queues of AWS Batch need?"""
    unset = [name for name in _NEEDED if not setting(name)]
    if unset:
        return [Check("settings", "failed", f"not set: {', '.join(unset)}", HOW_TO_SET)]
    default = setting("METAFLOW_BATCH_JOB_QUEUE")
    queues = sorted({options_of(profile, kind).get("queue", default) for kind in KINDS})
    found = [_ask("AWS Batch", functools.partial(_check_queue, queue)) for queue in queues]
    return [_ask("Step Functions", _check_states), *found, _ask("DynamoDB", _check_table)]


def check_reaches_mlflow(profile: Mapping[str, Any], given: str | None) -> Check:
    """Will the jobs know the tracking server, and can they reach it? This machine's settings do not reach them."""
    what = "mlflow, for the jobs"
    found = {given or options_of(profile, kind).get("environment", {}).get(_TRACKING, "") for kind in KINDS}
    bad = sorted(address for address in found if not address.startswith("http") or ".svc" in address)
    if bad:
        said = f"{_TRACKING} must be an address that AWS Batch reaches, got {bad[0] or 'none'}"
        remedy = "say it in the profile's every_step.environment, or as tracking_uri in --defaults (docs/cloud.md)"
        return Check(what, "failed", said, remedy)
    return Check(what, "ok", ", ".join(sorted(found)))


def check_size(machine: Mapping[str, Any]) -> Check:
    """Does AWS take a definition of this size, and ECS what each of its jobs changes of its container?"""
    size, what = len(json.dumps(machine)), "state machine"
    if size > _LARGEST:
        return Check(what, "failed", f"{size} bytes, AWS takes {_LARGEST}", _SHORTEN)
    changes = {name: len(json.dumps(each)) for name, each in _overrides(machine)}
    name = max(changes, key=lambda name: changes[name], default="")
    if changes and changes[name] > _LARGEST_OVERRIDES:
        said = f"command and environment of {name} have {changes[name]} bytes, ECS takes {_LARGEST_OVERRIDES}"
        return Check(what, "failed", said, f"shorten the profile's `environment`; {_SHORTEN}")
    return Check(what, "ok", f"{size} bytes")


def _overrides(machine: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What each job changes of its container, by step, in maps, too."""
    for name, state in machine["States"].items():
        if state["Type"] == "Map":
            yield from _overrides(state["Iterator"])
        elif "ContainerOverrides" in state.get("Parameters", {}):
            yield name, state["Parameters"]["ContainerOverrides"]


def present(name: str) -> Present:
    """What is there of that name.

    Raises:
        ConfigError: AWS does not say.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return _present(name)
    except (BotoCoreError, ClientError) as error:
        raise ConfigError(f"what is deployed as {name} cannot be looked at: {error}. {_LOGGED_IN}") from error


def _present(name: str) -> Present:
    states, events = _client("stepfunctions"), _client("events")
    pages = states.get_paginator("list_state_machines").paginate()
    address = next(
        (each["stateMachineArn"] for page in pages for each in page["stateMachines"] if each["name"] == name), None
    )
    machine = states.describe_state_machine(stateMachineArn=address) if address else None
    try:
        rule = events.describe_rule(Name=name)
        targets = events.list_targets_by_rule(Rule=name)["Targets"]
    except events.exceptions.ResourceNotFoundException:
        return Present(machine, None, [])
    return Present(machine, rule, targets)


def missing(there: Present) -> list[str]:
    """What is always made."""
    return [] if there.machine else ["the state machine"]


def restore(name: str, before: Present) -> list[str]:
    """Make it what it was before; returns what was done in words."""
    from botocore.exceptions import BotoCoreError, ClientError

    done = []
    try:
        now = present(name)
    except ConfigError as error:
        return [f"nothing could be put back: {error} See to it in the console"]
    for what, put_back in (("the rule", _restore_rule), ("the state machine", _restore_machine)):
        try:
            done += [f"{what} {name} {how}" for how in put_back(name, before, now)]
        except (BotoCoreError, ClientError) as error:
            done.append(f"{what} {name} could not be put back: {error}. See to it in the console")
    return done or ["nothing had been made yet"]


def _restore_rule(name: str, before: Present, now: Present) -> list[str]:
    events = _client("events")
    if before.rule is None:
        if now.rule is None:
            return []
        if now.targets:
            events.remove_targets(Rule=name, Ids=[target["Id"] for target in now.targets])
        events.delete_rule(Name=name)
        return ["is removed"]
    known = ("Name", "ScheduleExpression", "Description", "State")
    if now.rule == before.rule and now.targets == before.targets:
        return []
    events.put_rule(**{key: before.rule[key] for key in known if key in before.rule})
    if before.targets:
        events.put_targets(Rule=name, Targets=before.targets)
    return ["is again what it was"]


def _restore_machine(name: str, before: Present, now: Present) -> list[str]:
    states = _client("stepfunctions")
    if before.machine is None:
        if now.machine is None:
            return []
        states.delete_state_machine(stateMachineArn=now.machine["stateMachineArn"])
        return ["is removed"]
    if now.machine is not None and now.machine["definition"] == before.machine["definition"]:
        return []
    states.update_state_machine(
        stateMachineArn=before.machine["stateMachineArn"],
        definition=before.machine["definition"],
        roleArn=before.machine["roleArn"],
    )
    return ["is again what it was"]


def _check_states() -> Check:
    count = len(_client("stepfunctions").list_state_machines(maxResults=100)["stateMachines"])
    return Check("Step Functions", "ok", f"answers; {count} state machines")


def _check_queue(name: str) -> Check:
    found = _client("batch").describe_job_queues(jobQueues=[name])["jobQueues"]
    if not found:
        return Check("AWS Batch", "failed", f"there is no queue {name}", "terraform apply, or another in the profile")
    state, status = found[0]["state"], found[0]["status"]
    if (state, status) != ("ENABLED", "VALID"):
        return Check(
            "AWS Batch", "failed", f"the queue {name} is {state} and {status}", "enable it, or see what it says"
        )
    return Check("AWS Batch", "ok", f"the queue {name} takes jobs")


def _check_table() -> Check:
    name = setting("METAFLOW_SFN_DYNAMO_DB_TABLE")
    client = _client("dynamodb")
    try:
        client.describe_table(TableName=name)
    except client.exceptions.ResourceNotFoundException:
        remedy = "terraform apply, or METAFLOW_SFN_DYNAMO_DB_TABLE; steps that fan out need it"
        return Check("DynamoDB", "failed", f"there is no table {name}", remedy)
    return Check("DynamoDB", "ok", f"the table {name} is there")


def _ask(what: str, check: Callable[[], Check]) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return check()
    except (BotoCoreError, ClientError) as error:
        return Check(what, "failed", str(error), _LOGGED_IN)


def _client(service: str) -> Any:
    import boto3

    return boto3.Session().client(service)
