"""Profiles: where each kind of step runs, and on what. No code knows the cluster; a profile, a JSON file, does.

    {"runs_on": "kubernetes",
     "every_step": {"service_account": "fast-electra", "secrets": ["fast-electra"]},
     "steps": {"light": {"cpu": 1, "memory": 4096}, "pretrain": {"gpu": 8, "timeout_minutes": 2880}}}

What a kind does not say, `every_step` says; what neither says is Metaflow's default. Pods that Argo Workflows starts
report to the Kubernetes API, and others do not: `argo_service_account` is whom they are there.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fast_electra_core.errors import ConfigError, check_choice
from steps.metaflow_settings import config_path, setting

KINDS = {
    "light": "bookkeeping: start, joins, register, end",
    "tokenize": "text to token shards",
    "corrupt": "the auxiliary's forward pass: scoring candidates, drawing replacements ahead of training",
    "finetune": "fine-tuning a pack of tasks",
    "pretrain": "training, of either model",
}
"""The kinds of step, and what they do."""
PLACES = ("local", "kubernetes", "batch")
LOCAL: dict[str, Any] = {"runs_on": "local"}
"""The profile of a flow that is given none; the same as infra/profiles/local.json."""

_NEVER_RETRIED = "start"
_SECRET_NAME = re.compile(r"SECRET|PASSW|TOKEN(_|$)|CREDENTIAL|ACCESS_KEY|API_?KEY", re.IGNORECASE)


class _Option(NamedTuple):
    kind: type | tuple[type, ...]
    meaning: str


_ANYWHERE = {
    "retries": _Option(int, "0 to 4, which is all that Metaflow knows: how often a task is tried again"),
    "minutes_between_retries": _Option((int, float), "a number >= 0"),
    "timeout_minutes": _Option(int, "an integer >= 1"),
    "environment": _Option(
        dict, "an object of environment variables, each text or a number; credentials belong in `secrets`"
    ),
}
_ON_KUBERNETES = {
    "image": _Option(str, "a container image; without a registry it gets METAFLOW_KUBERNETES_CONTAINER_REGISTRY"),
    "image_pull_policy": _Option(str, "Always, IfNotPresent or Never"),
    "image_pull_secrets": _Option(list, "a list of names of Secrets"),
    "namespace": _Option(str, "a namespace"),
    "service_account": _Option(str, "the name of a service account"),
    "secrets": _Option(list, "a list of names of Secrets, whose keys become environment variables"),
    "cpu": _Option((int, float), "cores, > 0"),
    "gpu": _Option(int, "GPUs, >= 0"),
    "gpu_vendor": _Option(str, "nvidia or amd"),
    "memory": _Option(int, "MiB, >= 1"),
    "disk": _Option(int, "MiB of ephemeral storage, >= 1"),
    "shared_memory": _Option(int, "MiB of /dev/shm, >= 1"),
    "tmpfs_size": _Option(int, "MiB, >= 1, of memory that is mounted at tmpfs_path"),
    "tmpfs_path": _Option(str, "a path"),
    "persistent_volume_claims": _Option(dict, "an object of claim: path, each text"),
    "node_selector": _Option(dict, "an object of node labels, each text"),
    "tolerations": _Option(list, "a list of objects with key, operator, value, effect, toleration_seconds"),
    "labels": _Option(dict, "an object of labels, each text"),
    "annotations": _Option(dict, "an object of annotations, each text"),
    "port": _Option(int, "the port on which the nodes of one step find each other, 1 to 65535"),
    "qos": _Option(str, "Guaranteed or Burstable"),
    "security_context": _Option(dict, "an object"),
}
_ON_BATCH = {
    "queue": _Option(str, "the name of a job queue of AWS Batch"),
    **{
        name: _ON_KUBERNETES[name]
        for name in ("image", "cpu", "gpu", "memory", "shared_memory", "tmpfs_size", "tmpfs_path")
    },
}
OPTIONS = {**_ANYWHERE, **_ON_KUBERNETES, **_ON_BATCH}
"""What may be said of a kind of step."""
_OF_PLACE: dict[str, dict[str, _Option]] = {"local": {}, "kubernetes": _ON_KUBERNETES, "batch": _ON_BATCH}

_CHOICES = {
    "image_pull_policy": ("Always", "IfNotPresent", "Never"),
    "gpu_vendor": ("nvidia", "amd"),
    "qos": ("Guaranteed", "Burstable"),
}
_MOST_RETRIES = 4  # of its 6 attempts one is the first, and one is kept for @catch
_AT_LEAST = {"retries": 0, "minutes_between_retries": 0, "gpu": 0, "timeout_minutes": 1} | dict.fromkeys(
    ("memory", "disk", "shared_memory", "tmpfs_size", "port"), 1
)
_MOST = {"port": 65535}
_WORDS = {str: "text", int: "an integer", bool: "true or false", dict: "an object"}
_OF_TEXTS = ("persistent_volume_claims", "node_selector", "labels", "annotations")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "toleration_seconds": int}
_CHOICES_OF_TOLERATION = {
    "operator": ("Equal", "Exists"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
}
_SECURITY = {
    "run_as_non_root": bool, "run_as_user": int, "run_as_group": int, "allow_privilege_escalation": bool,
    "read_only_root_filesystem": bool, "capabilities": dict, "seccomp_profile": dict, "privileged": bool,
}  # fmt: skip


def parse_profile(text: str) -> dict[str, Any]:
    """A profile out of its JSON.

    Raises:
        ConfigError: it is no JSON, or something in it is unknown, of the wrong type, out of range or without effect.
    """
    try:
        profile = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the profile is not JSON: {error}; infra/profiles/kubernetes.json is one") from error
    return check_profile(profile)


def check_profile(profile: Any) -> dict[str, Any]:
    """The profile, if it can be used.

    Raises: as parse_profile.
    """
    _check_object("the profile", profile, ("runs_on", "argo_service_account", "every_step", "steps"))
    if "runs_on" not in profile:
        raise ConfigError(f"the profile must say runs_on, one of {', '.join(PLACES)}")
    check_choice("the profile's runs_on", profile["runs_on"], PLACES)
    account = profile.get("argo_service_account", "default")
    if not isinstance(account, str) or not account:
        raise ConfigError(f"the profile's argo_service_account must be the name of a service account; got {account!r}")
    if "argo_service_account" in profile and profile["runs_on"] != "kubernetes":
        raise ConfigError(f"the profile's argo_service_account has no effect with runs_on {profile['runs_on']!r}")
    allowed = {**_ANYWHERE, **_OF_PLACE[profile["runs_on"]]}
    steps = profile.get("steps", {})
    _check_object("the profile's steps", steps, KINDS)
    for where, options in (("every_step", profile.get("every_step", {})), *steps.items()):
        _check_object(f"the profile's {where}", options, OPTIONS)
        for name, value in options.items():
            if name not in allowed:
                raise ConfigError(f"the profile's {where}.{name} has no effect with runs_on {profile['runs_on']!r}")
            _check_value(f"the profile's {where}.{name}", name, value)
    return dict(profile)


def options_of(profile: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """All that the profile says of a kind of step. Objects, such as labels, are those of both places together."""
    options = dict(profile.get("every_step", {}))
    for name, value in profile.get("steps", {}).get(kind, {}).items():
        both = isinstance(value, dict) and isinstance(options.get(name), dict)
        options[name] = {**options[name], **value} if both else value
    return options


def check_datastore(profile: Mapping[str, Any], words: Sequence[str]) -> None:
    """Steps that do not run here reach what other steps have left; words are the command's.

    Raises:
        ConfigError: a run of theirs would leave it on this machine.
    """
    is_run = {"run", "resume"} & set(words) and not any(word.startswith(("--datastore", "--help")) for word in words)
    if is_run and profile["runs_on"] != "local" and setting("METAFLOW_DEFAULT_DATASTORE", "local") == "local":
        raise ConfigError(
            f"METAFLOW_DEFAULT_DATASTORE must be s3 where steps run on {profile['runs_on']}, got local "
            f"({config_path()} and the environment were asked). Let `fast-electra metaflow-config infra/terraform "
            "--write` write the settings, or export the METAFLOW_PROFILE that they were written for"
        )


def decorators(profile: Mapping[str, Any], kind: str, *, step: str, on_argo: bool = False) -> dict[str, dict[str, Any]]:
    """Metaflow's decorators for a step, by name, with their arguments; on_argo: for Argo Workflows to start."""
    options = options_of(profile, kind)
    if on_argo and "argo_service_account" in profile:
        options["service_account"] = profile["argo_service_account"]
    found: dict[str, dict[str, Any]] = {}
    place = profile["runs_on"]
    if place != "local":
        found[place] = {name: value for name, value in options.items() if name in _OF_PLACE[place]}
    if "retries" in options and step != _NEVER_RETRIED:  # bad input would be refused as often, minutes later
        pause = options.get("minutes_between_retries", 0)
        found["retry"] = {"times": options["retries"], "minutes_between_retries": pause}
    if "timeout_minutes" in options:
        found["timeout"] = {"minutes": options["timeout_minutes"]}
    if options.get("environment"):
        found["environment"] = {"vars": {name: str(value) for name, value in options["environment"].items()}}
    return found


def _check_object(what: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be an object, got {value!r}")
    for name in value:
        check_choice(f"a key of {what}", name, allowed)


def _check_value(what: str, name: str, value: Any) -> None:
    option = OPTIONS[name]
    if not _is_of(value, option.kind) or not _can_be(name, value):
        raise ConfigError(f"{what} must be {option.meaning}; got {value!r}")
    if name == "retries" and value > _MOST_RETRIES:
        raise ConfigError(f"{what} must be {option.meaning}; got {value!r}. `resume` goes on after the last")
    if name in _CHOICES:
        check_choice(what, value, _CHOICES[name])
    for toleration in value if name == "tolerations" else ():
        _check_fields(f"{what}[…]", toleration, _TOLERATION)
        for part in toleration.keys() & _CHOICES_OF_TOLERATION.keys():
            check_choice(f"{what}[…].{part}", toleration[part], _CHOICES_OF_TOLERATION[part])
    if name == "security_context":
        _check_fields(what, value, _SECURITY)
    for variable in value if name == "environment" else ():
        if _SECRET_NAME.search(variable):
            raise ConfigError(
                f"{what} holds {variable}, which reads like a credential and would stand in the run's records; put it "
                "into a Kubernetes Secret and name that in `secrets`"
            )


def _can_be(name: str, value: Any) -> bool:
    """Whether a value of the right type is in range: Kubernetes would refuse others pod by pod, while steps wait."""
    if isinstance(value, int | float):
        above = value > 0 if name == "cpu" else value >= _AT_LEAST[name]
        return math.isfinite(value) and above and value <= _MOST.get(name, value)
    if name in _OF_TEXTS:
        return all(isinstance(each, str) for each in value.values())
    if name == "environment":
        return all(_VARIABLE.fullmatch(each) and _is_of(value[each], (str, int, float)) for each in value)
    if name in ("secrets", "image_pull_secrets"):
        return all(isinstance(each, str) and each for each in value)
    return bool(value != "")


def _check_fields(what: str, value: Any, kinds: Mapping[str, type]) -> None:
    _check_object(what, value, kinds)
    for name, each in value.items():
        if type(each) is not kinds[name]:
            raise ConfigError(f"{what}.{name} must be {_WORDS[kinds[name]]}, got {each!r}")


def _is_of(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
