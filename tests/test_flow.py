"""The main job from end to end: text to a registered, scored, traceable model, read through Metaflow and MLflow."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Finished, Workspace

from fast_electra_core.config import PretrainConfig
from fast_electra_core.schedules import temperature_at
from steps.corpus import resolve_corpus
from steps.model_source import weights_digest
from steps.store import Store

pytestmark = pytest.mark.slow
NUM_STEPS, LOG_EVERY = 200, 10


@pytest.fixture(scope="module")
def client(finished: Finished) -> Any:
    return finished.workspace.mlflow()


@pytest.fixture(scope="module")
def version(client: Any) -> Any:
    (version,) = client.search_model_versions("name='fast-electra'")
    return version


@pytest.fixture(scope="module")
def children(finished: Finished, client: Any) -> dict[str, Any]:
    """Child runs of the flow's MLflow run by name."""
    parent = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in found}


def history(client: Any, run_id: str, metric: str) -> dict[int, float]:
    values = client.get_metric_history(run_id, metric)
    assert len(values) == len({value.step for value in values}), f"{metric} has two values at a step"
    return {value.step: value.value for value in values}


def test_the_model_version_says_what_it_was_made_from(finished: Finished, version: Any) -> None:
    tags, plan = version.tags, finished.pretrain["start"].task["plan"].data
    pathspec = finished.pretrain["register"].task.pathspec
    auxiliary = finished.auxiliary["train"].task["trained"].data
    sha = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert tags["metaflow.pathspec"] == pathspec
    assert tags["code.git_sha"].removesuffix("-dirty") == (sha or os.environ.get("FAST_ELECTRA_GIT_SHA", "unknown"))
    assert tags["tokenizer.digest"] == finished.auxiliary["start"].task["plan"].data["tokenizer_key"].split("/")[1]
    assert tags["auxiliary.digest"] == auxiliary["digest"]
    assert tags["config.digest"] == PretrainConfig(**plan["config"]).digest()
    schedule = {name: tags[name] for name in tags if name.startswith(("schedule", "temperature_"))}
    assert schedule == {
        "schedule": "exponential",
        "temperature_start": "2.0",
        "temperature_decay": "0.1",
        "temperature_end": "1.0",
    }


def test_given_parameters_override_the_preset_and_reach_the_run(finished: Finished, client: Any) -> None:
    plan = finished.pretrain["start"].task["plan"].data
    config = plan["config"]
    given = {"num_steps": 200, "tasks": "rte", "seeds": 1, "heldout_fraction": 0.1, "corpus": "text.txt"}
    assert given.items() <= config.items()
    assert config["hidden_size"] == 32  # the preset's
    params = client.get_run(plan["mlflow_run_id"]).data.params
    assert params == {name: str(value) for name, value in config.items()}


def test_lineage_leads_from_the_model_version_to_the_text(
    finished: Finished, client: Any, version: Any, tmp_path: Path
) -> None:
    run = client.get_run(version.run_id)
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    (text,) = [entry for entry in parent.inputs.dataset_inputs if entry.tags[0].value == "pre-training"]
    file = finished.workspace.folder / "text.txt"
    corpus = resolve_corpus(str(file), store=Store(str(tmp_path)), text_field="text", shard_megabytes=0.06)
    assert text.dataset.digest == corpus.digest == version.tags["corpus.digest"]
    assert json.loads(text.dataset.profile) == {"num_bytes": file.stat().st_size, "num_files": 1}
    (task,) = [entry for entry in parent.inputs.dataset_inputs if entry.tags[0].value == "fine-tuning"]
    assert task.dataset.name == "sample/rte"
    assert parent.info.status == "FINISHED"


def test_lineage_leads_from_the_model_version_to_the_registered_auxiliary(
    finished: Finished, client: Any, version: Any
) -> None:
    name, number = version.tags["auxiliary.version"].split("/")
    auxiliary = client.get_model_version(name, number)
    assert name == "fast-electra-auxiliary"
    assert auxiliary.tags["auxiliary.digest"] == version.tags["auxiliary.digest"]
    assert auxiliary.tags["corpus.digest"] == version.tags["corpus.digest"]
    assert client.get_run(auxiliary.tags["mlflow.parent_run_id"]).info.run_name == finished.auxiliary.pathspec


def test_a_search_by_tag_leads_from_the_auxiliary_to_the_main_model_and_back(
    finished: Finished, client: Any, version: Any
) -> None:
    condition = f"tags.`auxiliary.digest` = '{version.tags['auxiliary.digest']}'"  # as typed into the UI's search field
    found = {(each.name, each.version) for each in client.search_model_versions(condition)}
    assert found == {("fast-electra", 1), ("fast-electra-auxiliary", 1)}
    experiment = client.get_run(version.run_id).info.experiment_id
    runs = {run.info.run_name for run in client.search_runs([experiment], condition)}
    assert {finished.pretrain.pathspec, "auxiliary", "pre-training"} <= runs
    auxiliary = client.get_model_version("fast-electra-auxiliary", "1")
    assert auxiliary.tags["used_by.fast-electra/1"] == "auxiliary"
    assert version.tags["auxiliary.version"] == "fast-electra-auxiliary/1"


def test_the_training_has_the_text_and_the_auxiliary_among_its_inputs(client: Any, version: Any) -> None:
    run = client.get_run(version.run_id)
    auxiliary = client.get_model_version_by_alias("fast-electra-auxiliary", "champion")
    assert [f"models:/{each.model_id}" for each in run.inputs.model_inputs] == [auxiliary.source]
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["text.txt"]
    logged = client.get_logged_model(version.source.removeprefix("models:/")).metrics
    on = {metric.key: (metric.dataset_name, metric.dataset_digest) for metric in logged}
    assert on["heldout_auc"] == ("text.txt", version.tags["corpus.digest"])
    assert on["rte.accuracy"][0] == "sample/rte"


def test_the_task_model_is_registered_beside_the_encoder(client: Any, version: Any, children: dict[str, Any]) -> None:
    task_model = client.get_model_version_by_alias("fast-electra-rte", "champion")
    assert task_model.run_id == children["rte seed 0"].info.run_id
    assert task_model.tags["pretrained.version"] == f"fast-electra/{version.version}"
    assert version.tags["task.rte"] == f"fast-electra-rte/{task_model.version}"
    assert task_model.tags["corpus.digest"] == version.tags["corpus.digest"]
    assert float(task_model.tags["score"]) == children["rte seed 0"].data.metrics["accuracy"]


def test_the_first_good_models_are_champions(client: Any, version: Any) -> None:
    auxiliary = client.get_model_version_by_alias("fast-electra-auxiliary", "champion")
    assert float(auxiliary.tags["masked_loss"]) < float(auxiliary.tags["unigram_loss"])
    for alias in ("challenger", "champion"):
        assert client.get_model_version_by_alias("fast-electra", alias).version == version.version


def test_the_frozen_auxiliary_is_the_registered_one_bit_for_bit(
    finished: Finished, client: Any, tmp_path: Path
) -> None:
    frozen = finished.pretrain["freeze_auxiliary"].task["frozen"].data
    stored = Store(str(finished.workspace.folder / ".fast_electra")).get_folder(frozen["key"])
    model_id = client.get_model_version_by_alias("fast-electra-auxiliary", "champion").source.removeprefix("models:/")
    location = client.get_logged_model(model_id).artifact_location.removeprefix("file://")
    assert weights_digest(stored) == frozen["digest"] == weights_digest(Path(location) / "model")


def test_there_is_a_child_run_for_the_auxiliary_the_training_and_each_fine_tuning(children: dict[str, Any]) -> None:
    assert set(children) == {"auxiliary", "pre-training", "rte seed 0", "rte seed 0 untrained"}
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_training_metrics_are_logged_by_step(client: Any, version: Any) -> None:
    expected = list(range(LOG_EVERY, NUM_STEPS + 1, LOG_EVERY))
    for metric in ("loss", "temperature", "replaced_fraction", "recall_replaced", "recall_original", "learning_rate"):
        assert sorted(history(client, version.run_id, metric)) == expected, metric
    heldout = history(client, version.run_id, "heldout_rtd_loss")
    assert sorted(heldout) == list(range(20, NUM_STEPS + 1, 20))


def test_training_lowers_the_loss(client: Any, version: Any) -> None:
    loss = history(client, version.run_id, "loss")
    assert sum(loss[step] for step in (180, 190, 200)) < sum(loss[step] for step in (10, 20, 30))


def test_the_logged_temperature_follows_the_schedule(client: Any, version: Any) -> None:
    for step, value in history(client, version.run_id, "temperature").items():
        progress = (step - 1) / NUM_STEPS  # a row speaks of its last optimiser step, and those count from 0
        assert value == pytest.approx(
            temperature_at(progress, schedule="exponential", start=2.0, decay=0.1, end=1.0), rel=1e-9
        )


def test_both_starts_of_a_fine_tuning_are_scored(finished: Finished, children: dict[str, Any], client: Any) -> None:
    results = [result for task in finished.pretrain["finetune"] for result in task["results"].data]
    found = {(result["task"], result["seed"], result["untrained"]): result for result in results}
    assert len(results) == len(found) == 2
    for name, untrained in (("rte seed 0", False), ("rte seed 0 untrained", True)):
        result = found["rte", 0, untrained]
        assert children[name].data.metrics["accuracy"] == result["scores"]["accuracy"]
        assert len(history(client, children[name].info.run_id, "loss")) >= 1


def page_on_card(task: Any) -> str | None:
    """The document in the only frame of the task's card, as a browser would read it."""
    from metaflow.cards import get_cards

    (card,) = get_cards(task)
    data = re.search(r'__MF_DATA__\["[^"]+"\] = "([A-Za-z0-9+/=]+)"', card.get())
    assert data is not None
    (page,) = json.loads(base64.b64decode(data.group(1)))["components"]
    (section,) = page["contents"]
    (content,) = section["contents"]
    assert content["type"] == "markdown"
    assert "\n" not in content["source"].strip()  # a blank line would end the HTML inside markdown
    frames = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: frames.append((tag, dict(attributes)))  # type: ignore[method-assign]
    reader.feed(content["source"])
    ((tag, attributes),) = frames
    assert tag == "iframe"
    return attributes["srcdoc"]


@pytest.mark.parametrize(
    "step, file, words",
    [
        ("gather_tokens", "pages/text.html", "text.txt"),
        ("freeze_auxiliary", "pages/auxiliary.html", "models:/fast-electra-auxiliary@champion"),
        ("pretrain", "pages/training.html", "emperature"),
        ("gather_scores", "pages/scores.html", "rte"),
        ("end", "report.html", "fast-electra version 1"),
    ],
)
def test_a_step_shows_its_page_on_the_card_and_in_mlflow(
    step: str, file: str, words: str, finished: Finished, client: Any, children: dict[str, Any], tmp_path: Path
) -> None:
    task = finished.pretrain[step].task
    page = task["page"].data
    assert words in page
    assert page_on_card(task) == page
    parent = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    child = {"pages/auxiliary.html": "auxiliary", "pages/training.html": "pre-training"}.get(file)
    run_id = children[child].info.run_id if child else parent
    assert Path(client.download_artifacts(run_id, file, str(tmp_path))).read_text() == page


def test_the_first_charts_are_images_in_mlflow(finished: Finished, client: Any, tmp_path: Path) -> None:
    parent = finished.pretrain["start"].task["plan"].data["mlflow_run_id"]
    folder = Path(client.download_artifacts(parent, "charts", str(tmp_path)))
    assert {path.name for path in folder.iterdir()} == {"progress.png", "scores.png", "cost.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.iterdir())
    page = finished.pretrain["end"].task["page"].data
    for words in ("Loss, temperature and replaced share", "What the cost is made of", "tokenizing", "fine-tuning"):
        assert words in page


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_nothing_that_a_run_leaves_is_a_pickle(finished: Finished) -> None:
    kept = [finished.workspace.folder / name for name in (".fast_electra", "mlartifacts")]
    files = [path for folder in kept for path in files_below(folder)]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".html"}
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".ckpt"), path
        head = path.read_bytes()[:2]
        is_token_ids = path.name in ("train.bin", "heldout.bin", "samples.bin", "counts.bin")
        assert is_token_ids or (path.suffix != ".bin" and head not in (b"\x80\x02", b"\x80\x04", b"\x80\x05")), path
        assert head != b"PK", f"{path} is an archive, as torch.save writes them"


def test_start_says_what_the_run_will_cost_and_the_end_what_it_has(
    finished: Finished, client: Any, children: dict[str, Any], tmp_path: Path
) -> None:
    """The main model: two layers of 32 with a feed-forward of 64, and a head; three passes over 200 × 8 × 32 tokens."""
    main = 2 * (8 * 32 * 32 + 4 * 32 * 64 + 4 * 32 * 32) + 2 * 32 * 32 + 2 * 32
    started = finished.output[: finished.output.index("tokenize/")]
    assert "this run will cost, training on 51,200 tokens:" in started
    assert "with the auxiliary models:/fast-electra-auxiliary@champion:" in started
    (planned,) = finished.pretrain["start"].task["plan"].data["costs"]
    cost = finished.pretrain["pretrain"].task["trained"].data["cost"]
    assert planned["flops"] == cost["flops"]
    assert cost["flops"]["main"] == pytest.approx(3 * main * NUM_STEPS * 8 * 32)
    own = finished.auxiliary["train"].task["trained"].data["cost"]["flops"]["total"]
    assert cost["flops"]["charged"] == pytest.approx(cost["flops"]["total"] + own)
    for flops in ("total", "charged", "joint_total"):
        figure = f"{cost['flops'][flops]:.3e}"
        assert figure in started and figure in finished.output[finished.output.rindex("Task is starting") :]
    run = children["pre-training"]
    assert run.data.metrics["cost/flops_total"] == pytest.approx(cost["flops"]["total"])
    assert run.data.metrics["cost/measured_flops_per_second"] == cost["measured"]["flops_per_second"] > 0
    logged = json.loads(Path(client.download_artifacts(run.info.run_id, "cost.json", str(tmp_path))).read_text())
    assert logged["measured"]["memory"] == cost["measured"]["memory"] > 0
    assert "this run, with the auxiliary" in finished.pretrain["end"].task["page"].data


def test_the_closing_words_name_the_model_and_its_scores(finished: Finished) -> None:
    closing = finished.output[finished.output.rindex("Task is starting") :]
    assert re.search(r"registered +fast-electra 1 +@challenger @champion", closing)
    assert re.search(r"rte: accuracy +0\.\d+ +untrained 0\.\d+, majority 0\.\d+", closing)


def test_the_registered_model_gives_a_logit_per_token(client: Any, version: Any) -> None:
    import mlflow.transformers
    import torch

    model = client.get_logged_model(version.source.removeprefix("models:/"))
    pipeline = mlflow.transformers.load_model(model.artifact_location)
    tokens = pipeline.tokenizer("kara moden kalis", return_tensors="pt").input_ids
    with torch.no_grad():
        assert pipeline.model(tokens).logits.shape == tokens.shape == (1, 5)  # [CLS], three words, [SEP]


def test_the_store_keeps_nothing_half_made(finished: Finished) -> None:
    store = finished.workspace.folder / ".fast_electra"
    assert not [path for path in store.rglob("*") if ".partial" in path.name or path.name.startswith("tmp")]
    assert len(Store(str(store)).list_keys("tokens")) == 3  # one shard for the auxiliary, two for the main model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    "flow, last",
    [("pretrain_flow.py", "num_steps"), ("auxiliary_flow.py", "vocab_size"), ("evaluate_flow.py", "model")],
)
def test_help_lists_the_parameters_at_once_and_without_torch(flow: str, last: str, workspace: Workspace) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "flows" / flow), "run", "--help"]
    seconds = []
    for _ in range(3):
        with (workspace.folder / "out").open("w") as out, (workspace.folder / "imports").open("w") as imports:
            process = subprocess.Popen(
                command, cwd=workspace.folder, env=workspace.environment(), stdout=out, stderr=imports
            )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)  # not the clock's: other work may share the machine
    assert min(seconds) < 2.0
    shown = (workspace.folder / "out").read_text()
    assert all(f"--{name}" in shown for name in ("preset", "on_bad_text", "store", "tracking_uri", last))
    lines = (workspace.folder / "imports").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "metaflow" in imported
    assert not imported & {"torch", "transformers", "mlflow", "datasets", "sklearn", "pyarrow", "matplotlib", "boto3"}
