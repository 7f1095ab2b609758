"""What every step leaves in MLflow: the parent run and its children, inputs, and the tags of lineage.

A flow run's `plan` is a plain dict, made once in `start` (steps.planning) and handed on: the checked config, the
corpus, the tokenizer, the candidates, and the ids that every attempt and every resumed run share.
"""

import contextlib
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from fast_electra_core.config import TrainingConfig
from fast_electra_core.errors import ConfigError, StoreError, TrackingError
from fast_electra_core.glue import SPECS
from fast_electra_core.method_knobs import MODEL_FREE
from steps import tracking
from steps.store import Store

Plain = dict[str, Any]
LICENCE_TAG = "corpus.licence"
USED_BY_TAG = "used_by"
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


def connect(plan: Plain) -> Store:
    """This process talks to the run's tracking server; returns the run's store."""
    tracking.connect(plan["config"]["tracking_uri"])
    return Store(plan["config"]["store"])


@contextlib.contextmanager
def running(plan: Plain) -> Iterator[None]:
    """The flow's MLflow run is RUNNING inside, whatever an earlier attempt left it as; an error ends it FAILED, an
    interrupt KILLED. A server that is away costs a warning only: the work inside may not need it.
    """
    if _has_ended(plan):
        _mark(plan, "RUNNING")
    try:
        yield
    except BaseException as error:
        _mark(plan, tracking.status_after(error))
        raise


def how_to_browse(plan: Plain) -> str:
    """The page of the flow's run on the tracking server; the command that opens it, where there is no server."""
    is_served = str(plan["config"]["tracking_uri"]).startswith("http")
    return str(plan["mlflow_url"]) if is_served else "make ui"


def finish(plan: Plain) -> None:
    """The flow's MLflow run is FINISHED; a step that is done again after that reopens it."""
    tracking.finish(plan["mlflow_run_id"])
    _note_end(plan)


def _mark(plan: Plain, status: str) -> None:
    run_id = plan["mlflow_run_id"]
    try:
        tracking.connect(plan["config"]["tracking_uri"])
        if status == "RUNNING":
            tracking.reopen(run_id)
            Store(plan["config"]["store"]).delete(_end_key(plan))
        else:
            tracking.finish(run_id, status)
            _note_end(plan)
    except (ConfigError, StoreError, TrackingError, OSError) as error:  # never in place of the error on its way out
        _logger.warning("the MLflow run %s is not marked %s: %s", run_id, status, error)


# Only a run that has ended must be reopened. That is noted in the store, because MLflow takes two seconds to import and
# most steps of most runs have no other use for it.
def _has_ended(plan: Plain) -> bool:
    return Store(plan["config"]["store"]).has(_end_key(plan))


def _note_end(plan: Plain) -> None:
    with tempfile.TemporaryDirectory() as nothing:
        Store(plan["config"]["store"]).put_folder(Path(nothing), _end_key(plan))


def _end_key(plan: Plain) -> str:
    return f"{plan['run_key']}/ended"


def attempt(
    work: Callable[Concatenate[Plain, _Arguments], _Result],
) -> Callable[Concatenate[Plain, _Arguments], _Result]:
    """`work(plan, ...)` inside `running(plan)`: for all that a step of a flow does."""

    @functools.wraps(work)
    def attempted(plan: Plain, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with running(plan):
            return work(plan, *args, **kwargs)

    return attempted


def child(plan: Plain, name: str, *, params: Mapping[str, Any]) -> contextlib.AbstractContextManager[str]:
    """A child of the flow's MLflow run, the same one at every attempt; an error marks it FAILED until a resume."""
    return tracking.child_run(
        plan["config"]["tracking_uri"],
        plan["mlflow_run_id"],
        name=name,
        tags={"metaflow.pathspec": plan["pathspec"], **plan["code"], **made_of(plan)},
        params=params,
        key=name,
    )


def corpus_dataset(plan: Plain) -> tuple[str, str]:
    """Name and digest under which MLflow knows the text: the last part of its address, if that is a path."""
    address, digest = plan["corpus"]["address"], plan["corpus"]["digest"]
    is_path = address.startswith(("/", "s3://"))
    return (address.rstrip("/").rpartition("/")[2] if is_path else address), digest


def log_corpus(plan: Plain, run_id: str) -> None:
    corpus = plan["corpus"]
    name, digest = corpus_dataset(plan)
    tracking.log_input(
        run_id,
        name=name,
        digest=digest,
        source=corpus["address"],
        context="pre-training",
        profile={"num_bytes": corpus["num_bytes"], "num_files": corpus["num_files"]},
    )


def task_dataset(plan: Mapping[str, Any], task: str) -> tuple[str, str]:
    """Name and digest under which MLflow knows the task's data."""
    return f"{suite(plan) if task in SPECS else 'own'}/{task}", plan["tasks"][task]["digest"][:36]


def log_task(plan: Plain, run_id: str, task: str) -> None:
    facts = plan["tasks"][task]
    name, digest = task_dataset(plan, task)
    tracking.log_input(
        run_id,
        name=name,
        digest=digest,
        source=plan["config"]["glue"],
        context="fine-tuning",
        profile={name: value for name, value in facts.items() if name != "digest"},
    )


def suite(plan: Mapping[str, Any]) -> str:
    return "sample" if plan["config"]["glue"] == "sample" else "glue"


def subject(plan: Plain) -> str:
    """What is scored, in words: a model as it was asked for, with its version; or what the run trains."""
    if "model" not in plan:
        return f"Encoder of {plan['pathspec']}"
    model = plan["model"]
    version = f", version {model['version']}" if model["version"] != "not registered" else ""
    return f"{model['address']}{version}, weights {model['digest']}"


def made_of(plan: Plain) -> dict[str, str]:
    """Tags of what the run works on: text and the models it goes on from, or a model to score."""
    return text_tags(plan) | origin_tags(plan) if "corpus" in plan else model_tags(plan)


def origin_tags(plan: Plain) -> dict[str, str]:
    """The models that were given to go on from: the main model's start, an auxiliary's teacher."""
    given = {role: plan[role] for role in ("initial_model", "teacher") if plan.get(role)}
    return {
        f"{role}.{name}": value
        for role, model in given.items()
        for name, value in (
            ("digest", model["digest"]),
            ("address", model["address"]),
            ("version", _version(model["registry"])),
        )
    }


def _version(registered: Plain | None) -> str:
    return f"{registered['name']}/{registered['version']}" if registered else "not registered"


def model_tags(plan: Plain) -> dict[str, str]:
    model = plan["model"]
    return {
        "model.address": model["address"],
        "model.version": model["version"],
        "weights.digest": model["digest"],
        "tokenizer.digest": model["tokenizer_digest"],
    }


def text_tags(plan: Plain) -> dict[str, str]:
    licence = TrainingConfig.part_of(plan["config"]).licence()
    return {
        **({LICENCE_TAG: licence} if licence else {}),
        "corpus.digest": plan["corpus"]["digest"],
        "corpus.address": plan["corpus"]["address"],
        "tokenizer.digest": plan["tokenizer_key"].rpartition("/")[2],
    }


def lineage_tags(plan: Plain, pathspec: str) -> Plain:
    return {
        "metaflow.pathspec": pathspec,
        "mlflow.parent_run_id": plan["mlflow_run_id"],
        "config.digest": plan["config_digest"],
        **plan["code"],
        **text_tags(plan),
        **origin_tags(plan),
    }


def auxiliary_tags(chosen: Plain) -> dict[str, str]:
    """Which weights, from where; of an ensemble, those of all members."""
    return {
        "auxiliary.digest": chosen["digest"],
        "auxiliary.address": chosen["address"],
        "auxiliary.version": ",".join(_version(member["registry"]) for member in chosen["members"]),
    }


def note_use(plan: Plain, frozen: Plain | None, version: Plain) -> None:
    """Registered models that a version was made from have it among their tags, `used_by.NAME/VERSION`: in MLflow's UI
    the way leads from an auxiliary to its main models, too."""
    made_from = {role: plan[role]["registry"] for role in ("initial_model", "teacher") if plan.get(role)}
    members = [("auxiliary", member["registry"]) for member in frozen["members"]] if frozen else []
    for role, registered in [*made_from.items(), *members]:
        if registered:
            link = {f"{USED_BY_TAG}.{version['name']}/{version['version']}": role}
            tracking.set_version_tags(registered["name"], registered["version"], link)


def note_resume(plan: Plain, pathspec: str) -> None:
    """A Metaflow run that goes on with another's work is named in the MLflow run of both."""
    if pathspec != plan["pathspec"]:
        connect(plan)
        tracking.set_tags(plan["mlflow_run_id"], {"metaflow.resumed_as": pathspec})


def warn_of_missing_tags(plan: Plain, error: Exception) -> None:
    _logger.warning("the Metaflow run has no tag for the MLflow run %s: %s", plan["mlflow_run_id"], error)


def method_tags(plan: Plain) -> dict[str, str]:
    """How the main model was trained, and what the auxiliary that was chosen is to it."""
    config = plan["config"]
    roles = {"fast_electra": "replaces tokens, frozen"} | dict.fromkeys(("mlm", *MODEL_FREE), "gives the tokenizer")
    role = roles.get(config["method"], "gives the tokenizer and the generator's shape")
    if config["warm_start"] != "none":
        role += f"; the main model starts from its {config['warm_start']}"
    return {"method": config["method"], "auxiliary.role": role}


def corruption_tags(corrupted: Plain) -> dict[str, str]:
    """How the text was corrupted; offline also which corruption that is, and which share of it an earlier run drew."""
    if corrupted["corruption"] != "offline":
        return {"corruption": corrupted["corruption"]}
    return {
        "corruption": "offline",
        "corruption.digest": corrupted["digest"],
        "corruption.reused": f"{corrupted['reused_fraction']:g}",
    }


def costs(result: Plain) -> dict[str, float]:
    """Metrics of a training: the ledger's figures, as far as they are known, and what was measured.

    What stands before a slash is a section of its own in MLflow's UI, where it does not hide the curves.
    """
    names = ("seconds", "tokens_per_second", "peak_memory_megabytes", "num_parameters")
    cost = result["cost"]
    figures = {
        **{name: result[name] for name in names},
        **{f"flops_{name}": value for name, value in cost["flops"].items()},
        **{f"memory_{name}": value for name, value in cost["memory"].items()},
        **{f"measured_{name}": value for name, value in cost["measured"].items()},
    }
    return {f"cost/{name}": float(value) for name, value in figures.items() if value is not None}
