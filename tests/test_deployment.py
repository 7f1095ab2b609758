"""Claims about steps/deployment.py: one line of cron for both schedulers, and bad ones refused refused at once."""

import json
from typing import Any

import pytest

from fast_electra_core.errors import ConfigError
from steps.deployment import aws_cron, decorators, parse_deployment


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        # By hand, from EventBridge's rules: six fields, ? in one of the days, Sunday is 1.
        ("0 3 * * 1", "0 3 ? * 2 *"),
        ("0 3 * * 0", "0 3 ? * 1 *"),
        ("0 3 * * 7", "0 3 ? * 1 *"),
        ("0 3 * * 5-7", "0 3 ? * 6,7,1 *"),
        ("0 3 * * 0-7", "0 3 ? * 1,2,3,4,5,6,7 *"),
        ("0 3 * * MON-FRI", "0 3 ? * MON-FRI *"),
        ("0 3 * * 1-5", "0 3 ? * 2-6 *"),
        ("0 3 * * 1,4", "0 3 ? * 2,5 *"),
        ("*/15 0-6 * * *", "*/15 0-6 * * ? *"),
        ("0 0 1 jan,jul *", "0 0 1 JAN,JUL ? *"),
    ],
)
def test_five_fields_become_the_six_of_aws(cron: str, expected: str) -> None:
    assert aws_cron(parse_deployment(json.dumps({"cron": cron}))["cron"]) == expected


def test_what_aws_cannot_say_is_refused_for_it_alone() -> None:
    deployment = parse_deployment('{"cron": "0 3 1 * 1"}')
    assert decorators(deployment, scheduler="argo-workflows") == {"schedule": {"cron": "0 3 1 * 1"}}
    message = "names days of the month and of the week; AWS Step Functions takes one of them"
    with pytest.raises(ConfigError, match=message):
        decorators(deployment, scheduler="step-functions")


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * 7", "0 3 * * 0"),
        ("0 3 * * 5-7", "0 3 * * 5,6,0"),
        ("0 3 * * 1,fri-7", "0 3 * * 1,5,6,0"),
        ("0 3 * * 1-7/3", "0 3 * * 1,4,0"),
        ("7 3 7 7 SUN", "7 3 7 7 SUN"),
    ],
)
def test_sunday_is_0_where_argo_would_take_7_and_never_run(cron: str, expected: str) -> None:
    deployment = parse_deployment(json.dumps({"cron": cron}))
    assert decorators(deployment, scheduler="argo-workflows") == {"schedule": {"cron": expected}}


def test_a_deployment_is_a_clock_an_event_or_neither() -> None:
    berlin = {"cron": "0 3 * * 1", "timezone": "Europe/Berlin"}
    assert decorators(parse_deployment(json.dumps(berlin)), scheduler="") == {"schedule": berlin}
    assert decorators(parse_deployment('{"event": "new-text"}'), scheduler="") == {"trigger": {"event": "new-text"}}
    assert decorators(parse_deployment("{}"), scheduler="") == decorators({}, scheduler="step-functions") == {}


@pytest.mark.parametrize("name", ["event", "timezone"])
def test_step_functions_is_told_nothing_that_it_does_not_know(name: str) -> None:
    with pytest.raises(ConfigError, match=f"the deployment's {name} .* is not to be had on AWS Step Functions"):
        decorators({"cron": "0 3 * * 1", name: "x"}, scheduler="step-functions")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weekly", "the deployment is not JSON"),
        ([], "the deployment must be an object"),
        ({"crons": "0 3 * * 1"}, "a key of the deployment must be one of cron, .*Did you mean 'cron'"),
        ({"cron": 3}, "the deployment's cron must be text, got 3"),
        ({"cron": "0 3 ? * MON *"}, "cron must have five fields .* got 6"),
        ({"cron": "60 3 * * 1"}, r"cron's minute must be \*, numbers of 0 to 59, a-b or \*/n; got '60'"),
        ({"cron": "0 3 * * FUNDAY"}, "cron's day of week must be .*got 'FUNDAY'"),
        ({"cron": "0 3 * * 1-"}, "cron's day of week must be .*got '1-'"),
        ({"cron": "*/0 3 * * 1"}, "cron's minute must be .*got '\\*/0'"),
        ({"cron": "30-10 3 * * 1"}, "cron's minute 30-10 runs backwards; write it as a list"),
        ({"cron": "0 3 * * FRI-MON"}, "cron's day of week FRI-MON runs backwards"),
        ({"cron": "0 3 * * 1", "timezone": "Europe/Berlim"}, "timezone must be a name .* got 'Europe/Berlim'"),
        ({"cron": "0 3 * * 1", "event": "x"}, "the deployment has both cron and event"),
        ({"timezone": "UTC"}, "timezone has no effect without cron"),
        ({"event": "new text"}, "event must be letters, digits, - and ., got 'new text'"),
    ],
)
def test_a_deployment_that_cannot_be_meant_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_deployment(given if isinstance(given, str) else json.dumps(given))
