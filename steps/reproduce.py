"""The shell script that makes a registered version again: its code, its environment, the models that it goes on from,
and the flow with the parameters that were given."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fast_electra_core.errors import TrackingError
from steps import provenance
from steps.lineage_checks import absolute, own_digest
from steps.lineage_tree import Source, source_of
from steps.provenance import LINEAGE_FILE
from steps.register import MODEL_NAME
from steps.task_models import registered_name

_FLOWS = {"AuxiliaryFlow": "auxiliary_flow.py", "PretrainFlow": "pretrain_flow.py", "EvaluateFlow": "evaluate_flow.py"}
_PATHS = ("corpus", "glue", "tokenizer", "auxiliary", "initial_model", "distill_from", "model")
_OURS = {"store": "reproduced/store", "tracking_uri": "sqlite:///reproduced/mlflow.db", "experiment": "reproduced"}
"""Where the second making keeps things: apart from the first."""


@dataclass
class _Makings:
    """The flows to run, in order; each makes one version."""

    commands: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    """`NAME/VERSION` as it was -> its address in the new registry."""
    sources: list[Source] = field(default_factory=list)


def script(address: str) -> str:
    """A script for bash, to be run in a checkout of this project; in the end it compares the weights.

    Raises:
        TrackingError: no such version, or one that does not say how it was made.
    """
    source, makings = source_of(address), _Makings()
    _make(source, makings)
    record, environment = _record(source), source.environment or {}
    sha = source.tags["code.git_sha"]
    digest = own_digest(source.tags)
    expect = f" --expect_weights {digest}" if digest else ""
    compare = f"fast-electra lineage {makings.made[source.name]} --tracking_uri {_OURS['tracking_uri']}{expect}"
    lines = [
        _comment(f"makes {source.name} again, of {record['pathspec']}"),
        *_code_lines(sha, source.name),
        *_environment_lines(sha.removesuffix("-dirty"), environment),
        "",
        *makings.commands,
        "",
        "# the same weights? exit code 0 if so",
        compare,
    ]
    return "\n".join(["set -e", *lines])


def _make(source: Source, makings: _Makings) -> None:
    """Append the command that makes the version, after those that make what it is made from."""
    if source.name in makings.made:
        return
    record = _record(source)
    flow = record["pathspec"].partition("/")[0]
    if flow not in _FLOWS:
        raise TrackingError(
            f"{source.name} was made by {flow}; only runs of {', '.join(_FLOWS)} can be written out. From which text, "
            f"models and parameters it was made: fast-electra lineage models:/{source.name}"
        )
    given = {**record["given"], **_origins(source, record, makings)}
    parameters = {name: value for name, value in given.items() if name not in _OURS}
    words = [word for name, value in parameters.items() for word in (f"--{name}", _value(name, value, record))]
    ours = [word for name, value in _OURS.items() for word in (f"--{name}", value)]
    threads = (source.environment or {}).get("num_threads")
    command = shlex.join(["python", f"flows/{_FLOWS[flow]}", "run", *words, *ours])
    makings.commands.append(f"{f'OMP_NUM_THREADS={int(threads)} ' if threads else ''}{command}")
    name = source.info["name"]
    number = 1 + sum(name in _models_of(each) for each in makings.sources)
    makings.made[source.name] = f"models:/{name}/{number}"
    makings.sources.append(source)


def _models_of(source: Source) -> set[str]:
    """The registered models that the run which made the version makes a version of: task models are made along."""
    record = _record(source)
    pretrained = record.get("model", {"address": MODEL_NAME})
    registered = _registered(pretrained)
    encoder = registered.rpartition("/")[0] if registered else pretrained["address"]
    tasks = record["tasks"] if record["config"].get("keep_task_models") else ()
    return {source.info["name"], *(registered_name(encoder, task) for task in tasks)}


def _record(source: Source) -> dict[str, Any]:
    if source.record is None:
        raise TrackingError(
            f"{source.name} does not say how to make it again: its flow's run has no {LINEAGE_FILE}, which runs of "
            "earlier versions of this project lack. `fast-electra lineage` shows what is known of it"
        )
    return source.record


def _origins(source: Source, record: Mapping[str, Any], makings: _Makings) -> dict[str, str]:
    """The parameters that name models, as they are called in the new registry; what was made first is made first here.

    Of the candidates for the auxiliary only the chosen ones are named, for the others have no part in the weights; all
    where the version does not say which, as a task model does not: the flow chooses the same ones again.
    """
    tags, found = source.tags, {}
    if record["candidates"]:
        offered = {(_registered(each) or "not registered", each["address"]): each for each in record["candidates"]}
        names = (tags.get(f"auxiliary.{name}", "").split(",") for name in ("version", "address"))
        chosen = [offered[pair] for pair in zip(*names, strict=False) if pair in offered]
        found["auxiliary"] = ",".join(_address(each, record, makings) for each in chosen or record["candidates"])
    for role, parameter in (("initial_model", "initial_model"), ("teacher", "distill_from"), ("model", "model")):
        if record.get(role):
            found[parameter] = _address(record[role], record, makings)
    return found


def _registered(model: Mapping[str, Any]) -> str | None:
    """`NAME/VERSION` of a model of a run's record; None of one from outside the registry."""
    registry = model.get("registry")
    if registry:
        return f"{registry['name']}/{registry['version']}"
    version = model.get("version", "not registered")
    return None if version == "not registered" else str(version)


def _address(model: Mapping[str, Any], record: Mapping[str, Any], makings: _Makings) -> str:
    name = _registered(model)
    if name is None:
        return absolute(model["address"], record["folder"])
    _make(source_of(f"models:/{name}"), makings)
    return makings.made[name]


def _value(name: str, value: Any, record: Mapping[str, Any]) -> str:
    if name == "corpus":
        return str(record["corpus"]["address"])
    if name in _PATHS and value:
        return ",".join(absolute(each.strip(), record["folder"]) for each in str(value).split(","))
    return str(value)


def _comment(words: Any) -> str:
    """One line, whatever the words are: what comes from a tag or a record is not to end a comment."""
    return f"# {' '.join(str(words).split())}"


def _code_lines(sha: str, name: str) -> list[str]:
    commit = sha.removesuffix("-dirty")
    if not re.fullmatch("[0-9a-f]{7,64}", commit):
        raise TrackingError(
            f"{name} names no commit to make it again from: its code.git_sha is {sha!r}. `fast-electra lineage` shows "
            "what is known of its code"
        )
    folder = f"../fast-electra-{commit[:10]}"
    lines = [f"git worktree add --detach {folder} {commit}", f"cd {folder}"]
    if sha.endswith("-dirty"):
        lines.insert(
            0, "# files differed from the commit when it was made; `fast-electra lineage` says whether code did"
        )
    return ["", "# the code", *lines]


def _environment_lines(commit: str, environment: Mapping[str, Any]) -> list[str]:
    """The environment of the commit's lock, and what was installed in other versions then."""
    known = re.match(r"3\.\d+", str(environment.get("python", "")))
    python = known.group() if known else "3"
    lines = [
        "# the environment",
        f"python{python} -m venv .venv",
        ".venv/bin/python -m pip install --quiet --requirement requirements.lock",
        ".venv/bin/python -m pip install --quiet --no-deps --editable .",
    ]
    try:
        locked = provenance.locked_packages(commit)
    except (OSError, ValueError) as error:
        lines.insert(1, _comment(f"the commit's requirements.lock cannot be read here: {error}"))
        locked = {}
    packages = environment.get("packages", {}).items()
    then = {name.lower().replace("_", "-"): version.partition("+")[0] for name, version in packages}
    others = [f"{name}=={then[name]}" for name, version in locked.items() if name in then and then[name] != version]
    if others:
        lines.append(f".venv/bin/python -m pip install --quiet --no-deps {shlex.join(others)}")
    device = environment.get("device", "cpu")
    if device != "cpu":
        lines.append(_comment(f"it was trained on {device}; another device gives other last bits"))
    else:
        processor = environment.get("processor")
        lines.append(_comment(f"it was trained on {processor}; another processor may give other last bits"))
    return [*lines, "source .venv/bin/activate"]
