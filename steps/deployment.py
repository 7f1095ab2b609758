"""When RetrainFlow runs by itself: a small JSON object that the flow's Config `deployment` holds.

    {"cron": "0 3 * * 1", "timezone": "Europe/Berlin"}      by the clock; cron's five fields, here Mondays at three
    {"event": "new-text"}                                   when an event of that name arrives (Argo Events)
    {}                                                      only when it is asked to

AWS has six fields, in UTC, days of the week from 1 (Sunday) and a `?`; they are made out of the five.
"""

import json
import re
import zoneinfo
from collections.abc import Mapping
from typing import Any

from fast_electra_core.errors import ConfigError, check_choice

WEEKLY = {"cron": "0 3 * * 1"}
"""Of a flow that is given none."""
_KEYS = ("cron", "timezone", "event")
_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day of month": (1, 31), "month": (1, 12), "day of week": (0, 7)}
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NAMES = {"month": {name: number for number, name in enumerate(_MONTHS, 1)},
          "day of week": {name: number for number, name in enumerate(_DAYS)}}  # fmt: skip
_ITEM = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<every>\d+))?")
_EVENT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", re.IGNORECASE)


def parse_deployment(text: str) -> dict[str, str]:
    """A deployment out of its JSON; a Sunday that was given as 7 is 0 there, as Argo Workflows knows no other. What its
    controller cannot read it takes all the same, and never runs.

    Raises:
        ConfigError: it is no JSON object, or says something unknown, of the wrong form, or twice.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the deployment is not JSON: {error}; {json.dumps(WEEKLY)} is one") from error
    if not isinstance(given, dict):
        raise ConfigError(f"the deployment must be an object such as {json.dumps(WEEKLY)}, got {given!r}")
    for name, value in given.items():
        check_choice("a key of the deployment", name, _KEYS)
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"the deployment's {name} must be text, got {value!r}")
    if "cron" in given and "event" in given:
        raise ConfigError("the deployment has both cron and event; leave one out")
    if "cron" in given:
        given["cron"] = _checked_cron(given["cron"])
        if "timezone" in given:
            _check_timezone(given["timezone"])
    elif "timezone" in given:
        raise ConfigError("the deployment's timezone has no effect without cron; leave it out")
    if "event" in given and not _EVENT.fullmatch(given["event"]):
        raise ConfigError(f"the deployment's event must be letters, digits, - and ., got {given['event']!r}")
    return given


def decorators(deployment: Mapping[str, str], *, scheduler: str) -> dict[str, dict[str, Any]]:
    """Metaflow's decorators of the flow, by name, with their arguments. scheduler: step-functions, which is AWS's and
    knows cron alone, or any other word.

    Raises:
        ConfigError: AWS Step Functions cannot do that.
    """
    if scheduler != "step-functions":
        if "event" in deployment:
            return {"trigger": {"event": deployment["event"]}}
        return {"schedule": dict(deployment)} if "cron" in deployment else {}
    for name in ("event", "timezone"):
        if name in deployment:
            raise ConfigError(
                f"the deployment's {name} {deployment[name]!r} is not to be had on AWS Step Functions, which knows "
                "cron in UTC alone; leave it out, or deploy to Argo Workflows"
            )
    return {"schedule": {"cron": aws_cron(deployment["cron"])}} if "cron" in deployment else {}


def aws_cron(cron: str) -> str:
    """Five fields of cron as the six of EventBridge.

    >>> aws_cron("30 3 * * 1-5"), aws_cron("0 0 1 */3 *")
    ('30 3 ? * 2-6 *', '0 0 1 */3 ? *')

    Raises:
        ConfigError: days of both month and week are given, which EventBridge cannot have.
    """
    minute, hour, day, month, weekday = cron.split()
    if weekday == "*":
        weekday = "?"
    elif day == "*":
        day, weekday = "?", ",".join(map(_aws_days, weekday.upper().split(",")))
    else:
        raise ConfigError(
            f"cron {cron!r} names days of the month and of the week; AWS Step Functions takes one of them"
        )
    return f"{minute} {hour} {day} {month.upper()} {weekday} *"


def _aws_days(item: str) -> str:
    """One item of a list of days of the week: numbers move up by one, names stay."""
    days, slash, every = item.partition("/")
    moved = [str(int(part) + 1) if part.isdigit() else part for part in days.split("-")]
    return "-".join(moved) + slash + every


def _checked_cron(cron: str) -> str:
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"cron must have five fields (minute, hour, day of month, month, day of week), got {len(fields)}: "
            f"{cron!r}. The sixth that AWS wants is added where it is needed"
        )
    for value, (name, (low, high)) in zip(fields, _FIELDS.items(), strict=True):
        for item in value.upper().split(","):
            found = _ITEM.fullmatch(item)
            ends = [_number(word, name) for word in (found["first"], found["last"]) if word] if found else [None]
            if any(end is None or not low <= end <= high for end in ends) or (found and found["every"] == "0"):
                raise ConfigError(f"cron's {name} must be *, numbers of {low} to {high}, a-b or */n; got {item!r}")
            if ends != sorted(ends):  # type: ignore[type-var]
                raise ConfigError(f"cron's {name} {item} runs backwards; write it as a list, such as 5,6,0 for 5-0")
    *others, weekday = fields
    return " ".join([*others, ",".join(map(_from_sunday, weekday.split(",")))])


def _from_sunday(item: str) -> str:
    """One item of a list of days of the week, 7 as 0: 5-7 is 5,6,0."""
    days, _, every = item.partition("/")
    if "7" not in days:
        return item
    ends = [_number(word, "day of week") or 0 for word in days.upper().split("-")]
    return ",".join(dict.fromkeys(str(day % 7) for day in range(ends[0], 8, int(every or 1)) if day <= ends[-1]))


def _check_timezone(name: str) -> None:
    known = zoneinfo.available_timezones()
    if known and name not in known:  # none are known to a machine without tzdata
        raise ConfigError(f"the deployment's timezone must be a name such as Europe/Berlin, got {name!r}")


def _number(word: str, field: str) -> int | None:
    if word.isdigit():
        return int(word)
    return _NAMES.get(field, {}).get(word)
