"""A registry with versions that cost nothing: one tiny model, uploaded once, under as many versions as a test wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toys import electra_config

from fast_electra_core.config import ScoringConfig
from fast_electra_core.tokenizer import tokenizer_digest, train_tokenizer
from steps import score_sheet, tracking
from steps.gates import LINEAGE_TAGS, SCHEDULE_TAGS
from steps.model_source import weights_digest
from steps.tracking import connection

NAME = "fast-electra"
TEXT = "the cat sat on the mat of the function"


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(connection.connected_uri())


def save_model(folder: Path, *, seed: int = 0) -> Path:
    """A tiny ELECTRA detector and its tokenizer, as save_pretrained writes them."""
    import torch
    from transformers import ElectraForPreTraining

    tokenizer = train_tokenizer(iter([TEXT] * 20), vocab_size=300)
    torch.manual_seed(seed)
    shape = electra_config(len(tokenizer), hidden_size=8, intermediate_size=8, max_position_embeddings=64)
    ElectraForPreTraining(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sheet_of(scores: Mapping[str, Mapping[int, float]], **protocol: Any) -> dict[str, Any]:
    """A score sheet with these scores; majority 0.5 everywhere."""
    tasks = ",".join(scores)
    config = ScoringConfig(tasks=tasks, seeds=2, **protocol).to_dict()
    facts = {task: {"digest": f"digest of {task}", "dev": {"dev": 100}} for task in scores}
    rows = [
        {
            "task": task, "metric": "accuracy", "is_main": True, "majority": 0.5,
            "pretrained": {"values": {str(seed): value for seed, value in by_seed.items()}, "learning_rate": 1e-3},
        }
        for task, by_seed in scores.items()
    ]  # fmt: skip
    return score_sheet.score_sheet(config, facts, rows)


class Registry:
    """Versions of NAME at the connected server."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        tracking.connect(uri)
        self.folder = save_model(folder / "model")
        first = tracking.register_model(
            run_id=self.new_run(), name=NAME, folder=self.folder, task="feature-extraction", example="the cat",
            card="# toy\n\n## Made from\n\n| a | b |\n", tags={}, metrics={}, description="A toy.",
        )  # fmt: skip
        self.model_id = first["model_id"]
        loaded = train_tokenizer(iter([TEXT] * 20), vocab_size=300)
        self.tags = {
            **dict.fromkeys((*LINEAGE_TAGS, *SCHEDULE_TAGS), "x"),
            "weights.digest": weights_digest(self.folder),
            "tokenizer.digest": tokenizer_digest(loaded),
            "corpus.licence": "CC0-1.0",
        }

    def new_run(self) -> str:
        return tracking.start_parent(self.uri, "tests", name="flow", tags={}, params={})

    def version(self, scores: Mapping[str, Mapping[int, float]] | None = None, **tags: str) -> dict[str, Any]:
        """One more version, with its scores, as model_version_info gives it."""
        run_id = self.new_run()
        tags = {**self.tags, "mlflow.parent_run_id": run_id, **tags}
        if scores is not None:
            tags |= self.scored(run_id, sheet_of(scores))
        made = client().create_model_version(
            NAME, f"models:/{self.model_id}", run_id=run_id, tags=tags, model_id=self.model_id
        )
        return tracking.model_version_info(f"models:/{NAME}/{made.version}")

    def scored(self, run_id: str, sheet: dict[str, Any]) -> dict[str, str]:
        """The run holds the sheet; returns the tag that leads to it."""
        tracking.log_dict(run_id, {"sheet": sheet}, "scores.json")
        return {f"{score_sheet.TAG}{score_sheet.key_of(sheet)}": run_id}
