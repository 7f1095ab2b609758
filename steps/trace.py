"""What every step leaves in MLflow: the parent run and its children, inputs, and the tags of lineage.

A flow run's `plan` is a plain dict, made once in `start` (steps.planning) and handed on: the checked config, the
corpus, the tokenizer, the candidates, and the ids that every attempt and every resumed run share.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from steps import tracking
from steps.store import Store

Plain = dict[str, Any]


def connect(plan: Plain) -> Store:
    """This process talks to the run's tracking server; returns the run's store."""
    tracking.connect(plan["config"]["tracking_uri"])
    return Store(plan["config"]["store"])


@contextlib.contextmanager
def child(plan: Plain, name: str, *, params: Mapping[str, Any]) -> Iterator[str]:
    """A child run, the same one at every attempt; an error marks it and its parent FAILED until a resume."""
    tracking.reopen(plan["mlflow_run_id"])
    try:
        with tracking.child_run(
            plan["config"]["tracking_uri"],
            plan["mlflow_run_id"],
            name=name,
            tags={"metaflow.pathspec": plan["pathspec"], **plan["code"], **text_tags(plan)},
            params=params,
            key=name,
        ) as run_id:
            yield run_id
    except Exception:
        tracking.finish(plan["mlflow_run_id"], "FAILED")
        raise


def log_corpus(plan: Plain, run_id: str) -> None:
    corpus = plan["corpus"]
    tracking.log_input(
        run_id,
        name=corpus["address"],
        digest=corpus["digest"],
        source=corpus["address"],
        context="pre-training",
        profile={"num_bytes": corpus["num_bytes"], "num_files": corpus["num_files"]},
    )


def log_task(plan: Plain, run_id: str, task: str) -> None:
    facts = plan["tasks"][task]
    tracking.log_input(
        run_id,
        name=f"{suite(plan)}/{task}",
        digest=facts["digest"][:36],
        source=plan["config"]["glue"],
        context="fine-tuning",
        profile={name: value for name, value in facts.items() if name != "digest"},
    )


def suite(plan: Plain) -> str:
    return "sample" if plan["config"]["glue"] == "sample" else "glue"


def text_tags(plan: Plain) -> dict[str, str]:
    return {
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
    }


def auxiliary_tags(chosen: Plain) -> dict[str, str]:
    registered = chosen["registry"] or {}
    return {
        "auxiliary.digest": chosen["digest"],
        "auxiliary.address": chosen["address"],
        "auxiliary.version": f"{registered['name']}/{registered['version']}" if registered else "not registered",
    }


def corruption_tags(corrupted: Plain) -> dict[str, str]:
    """How the text was corrupted; offline also which corruption that is, and which share of it an earlier run drew."""
    if corrupted["corruption"] == "online":
        return {"corruption": "online"}
    return {
        "corruption": "offline",
        "corruption.digest": corrupted["digest"],
        "corruption.reused": f"{corrupted['reused_fraction']:g}",
    }


def costs(result: Plain) -> dict[str, float]:
    names = ("seconds", "tokens_per_second", "peak_memory_megabytes", "num_parameters")
    return {f"cost.{name}": result[name] for name in names}
