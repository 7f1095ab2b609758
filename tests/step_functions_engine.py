"""AWS Step Functions and Batch at work: runs a state machine that the mock of AWS keeps, each job as a process.

What it does is what the States Language says of those parts that Metaflow uses: tasks that submit a job and wait for
it, tasks that read an item of DynamoDB (really, of the mock), maps, paths. A job is tried again as its retry strategy
says. Whatever else comes is an error, and no guess.
"""

import json
import re
import subprocess
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

_FIELDS = re.compile(r"\$\.\[((?:'[^']+'(?:, )?)+)\]")
_FIELD = re.compile(r"\.(?:\['([^']+)'\]|(\w+))|\.\[(\d+)\]")


class JobFailed(Exception):
    """A job has failed as often as it may."""


class Job(NamedTuple):
    step: str
    attempt: int
    """From 1."""
    environment: Mapping[str, str]
    log: Path
    code: int


class Execution:
    """One run of a state machine; `run` runs it to its end. image: the environment that the containers bring."""

    def __init__(
        self, client: Callable[[str], Any], machine: str, folder: Path, *, image: Mapping[str, str], given: Any
    ) -> None:
        found = client("stepfunctions").describe_state_machine(stateMachineArn=machine)
        self.definition = json.loads(found["definition"])
        self.name = str(uuid.uuid4())
        self._dynamodb, self._folder, self._image, self._given = client("dynamodb"), folder, dict(image), given
        self.jobs: list[Job] = []

    def run(self) -> str:
        """SUCCEEDED or FAILED."""
        try:
            self._run(self.definition, self._given, {"Execution": {"Name": self.name}})
        except JobFailed:
            return "FAILED"
        return "SUCCEEDED"

    def _run(self, machine: Mapping[str, Any], value: Any, context: Mapping[str, Any]) -> Any:
        name = machine["StartAt"]
        while True:
            state = machine["States"][name]
            value = self._run_state(state, value, context)
            if state.get("End"):
                return value
            name = state["Next"]

    def _run_state(self, state: Mapping[str, Any], value: Any, context: Mapping[str, Any]) -> Any:
        known = {"Type", "Resource", "Parameters", "Retry", "OutputPath", "ResultPath", "Next", "End", "Iterator"}
        assert set(state) <= known | {"ItemsPath", "MaxConcurrency"}, state
        if state["Type"] == "Map":
            items = _at(state["ItemsPath"], value, context)

            def one(item: Any) -> Any:
                inside = {**context, "Map": {"Item": {"Value": item}}}
                return self._run(state["Iterator"], _filled(state["Parameters"], value, inside), inside)

            with ThreadPoolExecutor(2) as pool:
                result: Any = list(pool.map(one, items))
        else:
            given = _filled(state["Parameters"], value, context)
            result = {
                "arn:aws:states:::batch:submitJob.sync": self._submit,
                "arn:aws:states:::dynamodb:getItem": self._get_item,
            }[state["Resource"]](given)
        if "ResultPath" in state:
            (key,) = re.fullmatch(r"\$\.(\w+)", state["ResultPath"]).groups()  # type: ignore[union-attr]
            result = {**value, key: result}
        return _at(state.get("OutputPath", "$"), result, context)

    def _get_item(self, given: Mapping[str, Any]) -> Any:
        return self._dynamodb.get_item(**given)

    def _submit(self, given: Mapping[str, Any]) -> Any:
        """The job, tried as often as it may be; what `.sync` returns of it."""
        job_id, overrides = str(uuid.uuid4()), given["ContainerOverrides"]
        assert len(json.dumps(overrides)) <= 8192, "ECS takes no more"
        environment = {each["Name"]: each["Value"] for each in overrides["Environment"]}
        for attempt in range(1, given["RetryStrategy"]["Attempts"] + 1):
            folder = self._folder / f"{job_id}-{attempt}"
            folder.mkdir(parents=True)
            own = {"AWS_BATCH_JOB_ID": job_id, "AWS_BATCH_JOB_ATTEMPT": str(attempt)}
            own |= {"AWS_BATCH_JQ_NAME": given["JobQueue"], "AWS_BATCH_CE_NAME": "compute"}
            own["AWS_EXECUTION_ENV"] = "AWS_ECS_EC2"
            whole = {**self._image, "HOME": str(folder), "TMPDIR": str(folder), **own, **environment}
            log = folder / "log"
            with log.open("wb") as file:
                done = subprocess.run(
                    overrides["Command"], cwd=folder, env=whole, stdout=file, stderr=file, stdin=subprocess.DEVNULL
                )
            self.jobs.append(Job(given["Parameters"]["step_name"], attempt, whole, log, done.returncode))
            if done.returncode == 0:
                return {"JobId": job_id, "Parameters": given["Parameters"], "Status": "SUCCEEDED"}
        raise JobFailed(given["JobName"])


def _filled(template: Any, value: Any, context: Mapping[str, Any]) -> Any:
    """A payload template: keys that end in `.$` have a path as their value."""
    if isinstance(template, dict):
        return {
            key.removesuffix(".$"): _at(each, value, context) if key.endswith(".$") else _filled(each, value, context)
            for key, each in template.items()
        }
    return [_filled(each, value, context) for each in template] if isinstance(template, list) else template


def _at(path: str, value: Any, context: Mapping[str, Any]) -> Any:
    """What lies at a path of the value, or, from `$$` on, of the context; several names: an object of those there."""
    if path.startswith("$$"):
        return _at(path[1:], context, {})
    if several := _FIELDS.fullmatch(path):
        names = re.findall(r"'([^']+)'", several[1])
        return {name: value[name] for name in names if name in value} if len(names) > 1 else value[names[0]]
    rest = path[1:]
    while rest:
        found = _FIELD.match(rest)
        assert found is not None, path
        name, plain, index = found.groups()
        value = value[int(index)] if index is not None else value[name or plain]
        rest = rest[found.end() :]
    return value
