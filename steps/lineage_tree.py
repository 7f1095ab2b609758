"""A registered version as a tree of what it was made from, out of MLflow alone; each recorded digest checked."""

import datetime
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fast_electra_core.errors import TrackingError
from steps import lineage_checks as checks
from steps import tracking
from steps.gates import LINEAGE_TAGS, SCHEDULE_TAGS
from steps.lineage_checks import DIFFERS, Check
from steps.provenance import ENVIRONMENT_FILE, LINEAGE_FILE
from steps.register import AUXILIARY_NAME
from steps.task_models import PRETRAINED_TAG

Plain = dict[str, Any]
_GATES = ("promotion.", "gate.", "gates.")
_MADE_FROM = ("auxiliary.", "initial_model.", "teacher.", "pretrained.", "used_by.")
_ELSEWHERE = ("code.", "config.digest", "glue.", "score", "corpus.", "tokenizer.", "weights.", "model.sha256")
_METHOD = ("method", *SCHEDULE_TAGS, "corruption", "corruption.digest", "corruption.reused")
_COST = ("cost/", "cost.")  # the dot is of earlier versions
_IDS = ("metaflow.pathspec", "mlflow.parent_run_id")


@dataclass
class Node:
    """One thing in the tree: what is known of it, what was checked of it, and its parts."""

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    parts: list["Node"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Lineage tags that a version lacks."""

    def everything(self) -> list["Node"]:
        """The node and all below it."""
        return [self, *(node for part in self.parts for node in part.everything())]


@dataclass
class Source:
    """What MLflow holds on a version."""

    address: str
    info: Plain
    run: Plain | None
    """The run that made the weights; None where it was deleted."""
    record: Plain | None
    """LINEAGE_FILE of the flow's run; None of versions from before there was one."""
    environment: Plain | None
    scores: Plain | None

    @property
    def tags(self) -> dict[str, str]:
        """The version's tags."""
        return dict(self.info["tags"])

    @property
    def name(self) -> str:
        """`NAME/VERSION`, as the tags of others have it."""
        return f"{self.info['name']}/{self.info['version']}"


def tree_of(address: str, *, checking: bool = True) -> Node:
    """The tree of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. With checking False nothing but MLflow is read, and
    no file of it.

    Raises:
        TrackingError: no such model, alias or version; the message lists those there are.
    """
    return _version(address, checking=checking, above=())


def source_of(address: str) -> Source:
    """What MLflow holds on a version. Raises as tree_of."""
    info = tracking.model_version_info(address)
    run = _or_none(lambda: tracking.run_record(info["run_id"]))
    parent = info["tags"].get("mlflow.parent_run_id", "")
    record = _or_none(lambda: tracking.load_dict(parent, LINEAGE_FILE)) if parent else None
    environment = _or_none(lambda: tracking.load_dict(info["run_id"], ENVIRONMENT_FILE)) if run else None
    scores = _or_none(lambda: tracking.load_dict(parent, "scores.json")) if parent else None
    return Source(address, info, run, record, environment or (record or {}).get("environment"), scores)


def missing_tags(source: Source) -> list[str]:
    """Tags of lineage that the version should have and has not."""
    if source.info["name"] == AUXILIARY_NAME:
        wanted: tuple[str, ...] = LINEAGE_TAGS
    elif PRETRAINED_TAG in source.tags:
        wanted = ("metaflow.pathspec", "code.git_sha", "config.digest", PRETRAINED_TAG)
    else:
        wanted = (*LINEAGE_TAGS, *SCHEDULE_TAGS)
    return [name for name in wanted if not str(source.tags.get(name, "")).strip()]


def _or_none(read: Callable[[], Any]) -> Any:
    """A run that was deleted, or whose files are out of reach, is one thing less to tell of."""
    try:
        return read()
    except (TrackingError, OSError):
        return None


def _version(address: str, *, checking: bool, above: tuple[str, ...]) -> Node:
    source = source_of(address)
    info, tags, record = source.info, source.tags, source.record
    aliases = "".join(f"  @{alias}" for alias in info["aliases"])
    node = Node(f"{info['name']} version {info['version']}{aliases}", _made_by(source), missing=missing_tags(source))
    if source.name in above:
        return node
    above = (*above, source.name)
    if checking:
        node.checks = checks.check_model(f"models:/{source.name}", tags)
    parts = [_scores(source), _facts("gates and promotion", tags, _GATES), _method(source)]
    if record and record["corpus"]:
        parts.append(_text(tags, record, checking=checking))
    parts += _origins(source, checking=checking, above=above)
    if record and record["tasks"]:
        parts.append(_tasks(record, checking=checking))
    parts += [
        _code(tags, checking=checking),
        _environment(source),
        _parameters(source, checking=checking),
        _cost(source),
        _users(info),
        _facts("other tags", {key: value for key, value in tags.items() if not _is_shown(key, source)}, ("",)),
    ]
    node.parts = [part for part in parts if part.facts or part.checks or part.parts]
    return node


def _made_by(source: Source) -> dict[str, str]:
    tags, run = source.tags, source.run
    facts = {"Metaflow": tags.get("metaflow.pathspec", "not recorded")}
    if run is None:
        return {**facts, "MLflow run": f"{source.info['run_id'] or 'not recorded'}, which is gone"}
    start, end = run["start"], run["end"] or run["start"]
    when = datetime.datetime.fromtimestamp(start / 1000).astimezone().isoformat(sep=" ", timespec="minutes")
    return {**facts, "MLflow run": run["url"], "begun": f"{when}, {run['status']} after {(end - start) / 1000:,.0f} s"}


def _scores(source: Source) -> Node:
    """With n, standard deviation and interval where there are several seeds; else what the version's tags say."""
    tags, rows = source.tags, (source.scores or {}).get("rows", [])
    facts = {}
    for row in rows if source.info["name"] != AUXILIARY_NAME else ():
        facts[f"{row['task']} {row['metric']}"] = _score(row)
    metrics = source.run["metrics"] if source.run else {}
    shown = {f"{row['task']}.{row['metric']}" for row in rows}
    for key, value in sorted(tags.items()):
        if key not in shown and (key in metrics or key.startswith(("glue.", "score"))):
            facts[key] = value
    return Node("scores", facts)


def _score(row: Mapping[str, Any]) -> str:
    words = []
    for start in ("pretrained", "untrained"):
        found = row[start]
        if found:
            spread = f" ± {found['std']:.4f}" if found["std"] is not None else ""
            name = "untrained " if start == "untrained" else ""
            words.append(f"{name}{found['mean']:.4f}{spread} (n {found['n']})")
    return ", ".join([*words, f"majority {row['majority']:.4f}"])


def _method(source: Source) -> Node:
    """How it was trained: method, temperature, corruption, and the seeds."""
    facts = {name: source.tags[name] for name in _METHOD if name in source.tags}
    config = source.record["config"] if source.record else {}
    if "seed" in config:
        facts["seed"] = str(config["seed"])
    if "seeds" in config:
        facts["seeds of fine-tuning"] = f"0 to {config['seeds'] - 1}"
    return Node("method", facts)


def _text(tags: Mapping[str, str], record: Plain, *, checking: bool) -> Node:
    corpus = record["corpus"]
    facts = {
        "address": corpus["address"],
        "digest": corpus["digest"],
        "size": f"{corpus['num_bytes'] / 1e6:,.1f} MB in {corpus['num_files']:,} files",
        "tokens": tags.get("corpus.num_tokens", ""),
    }
    node = Node("text", {key: value for key, value in facts.items() if value})
    if checking:
        node.checks = checks.check_text(tags, record)
    else:
        node.facts |= {f"file {file['name']}": file["digest"] for file in corpus["files"]}
    return node


def _origins(source: Source, *, checking: bool, above: tuple[str, ...]) -> list[Node]:
    """The models that the version was made from, each with its own lineage."""
    nodes, tags = [], source.tags
    for tag, role in tracking.ORIGIN_TAGS.items():
        prefix = tag.rpartition(".")[0]
        named = [each for each in tags.get(tag, "").split(",") if each]
        if not named:
            continue
        facts = {key.removeprefix(f"{prefix}."): value for key, value in tags.items() if key.startswith(f"{prefix}.")}
        node = Node(role, facts)
        digests: list[str | None] = []
        is_registered = [name != "not registered" and "/" in name for name in named]
        for name, known in zip(named, is_registered, strict=True):
            if not known:
                digests.append(None)
                continue
            made = _or_none(functools.partial(_version, f"models:/{name}", checking=checking, above=above))
            node.parts.append(made or Node(f"{name}, which is gone from the registry"))
            digests.append(checks.own_digest(tracking.model_version_info(f"models:/{name}")["tags"]) if made else None)
        if checking and any(is_registered):
            node.checks.append(checks.check_members(f"{prefix}.digest", tags.get(f"{prefix}.digest"), digests))
        elif checking and source.record:
            address = tags.get(f"{prefix}.address", "")
            node.checks.append(
                checks.check_source(f"{prefix}.digest", address, tags.get(f"{prefix}.digest"), source.record)
            )
        nodes.append(node)
    return nodes


def _tasks(record: Plain, *, checking: bool) -> Node:
    config = record["config"]
    facts = {"address": config["glue"], "seeds": str(config["seeds"])}
    node = Node("tasks", facts)
    if checking:
        node.checks = checks.check_tasks(record)
    else:
        node.facts |= {f"task {task}": facts["digest"] for task, facts in record["tasks"].items()}
    return node


def _code(tags: Mapping[str, str], *, checking: bool) -> Node:
    node = _facts("code", tags, ("code.",))
    if checking:
        node.checks = checks.check_code(tags)
    return node


def _environment(source: Source) -> Node:
    environment = source.environment
    if environment is None:
        return Node("environment")
    facts = {key: str(value) for key, value in environment.items() if key != "packages" and value is not None}
    others = checks.other_packages(environment)
    facts["packages"] = f"{len(environment['packages'])} recorded; " + (
        f"other here: {', '.join(others)}" if others else "the same here"
    )
    return Node("environment", facts)


def _parameters(source: Source, *, checking: bool) -> Node:
    """All of them, and which of them were given by name."""
    record = source.record
    if record is None:
        return Node("parameters", dict(source.run["params"]) if source.run else {})
    given = record["given"]
    facts = {name: str(value) for name, value in record["config"].items()}
    node = Node("parameters", {"given by name": ", ".join(given) or "none", **facts})
    if checking:
        node.checks = [checks.check_config(source.tags, record)]
    return node


def _cost(source: Source) -> Node:
    metrics = source.run["metrics"] if source.run else {}
    facts = {name: f"{value:,.6g}" for name, value in sorted(metrics.items()) if name.startswith(_COST)}
    return Node("cost", facts)


def _users(info: Plain) -> Node:
    users = tracking.find_users(info["name"], info["version"])
    return Node("used by", {f"{each['name']} version {each['version']}": f"as its {each['role']}" for each in users})


def _facts(title: str, tags: Mapping[str, str], prefixes: tuple[str, ...]) -> Node:
    return Node(title, {key: value for key, value in sorted(tags.items()) if key.startswith(prefixes)})


def _is_shown(key: str, source: Source) -> bool:
    """Whether another part of the tree has the tag."""
    is_score = source.run is not None and key in source.run["metrics"]
    is_parameter = source.record is not None and key in source.record["config"]
    return is_score or is_parameter or key in (*_IDS, *_METHOD) or key.startswith((*_GATES, *_MADE_FROM, *_ELSEWHERE))


def differences(node: Node) -> list[Check]:
    """The checks in the tree that failed."""
    return [check for each in node.everything() for check in each.checks if check.verdict == DIFFERS]
