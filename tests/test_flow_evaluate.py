"""EvaluateFlow from end to end, with fine-tunings that fail, die once, and die every time."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Workspace
from toys import save_detector

from fast_electra_core.sample_tasks import sample_task

pytestmark = pytest.mark.slow

FAULTS = """
import os, signal
from pathlib import Path
import steps.finetune

really = steps.finetune.finetune_settings

def finetune_settings(recipe, spec, *, given, **more):  # every fine-tuning asks for them when it has begun
    name = f"{spec.name} {given['seed']}"
    if name == "rte 1":
        raise RuntimeError("injected")
    if name == "sst2 0" or (name == "cola 0" and not Path("died").exists()):
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return really(recipe, spec, given=given, **more)

steps.finetune.finetune_settings = finetune_settings
"""


class Evaluated(NamedTuple):
    run: Any
    output: str
    client: Any
    artifacts: Path


def write_tasks(root: Path) -> None:
    """Sample tasks in the classic form, with test sets, and a task of one's own."""
    for task, folder in (("rte", "RTE"), ("sst2", "SST-2")):
        data = sample_task(task, num_train=40, num_dev=20)
        columns = ("sentence1", "sentence2") if task == "rte" else ("sentence",)
        words = ("entailment", "not_entailment") if task == "rte" else ("0", "1")
        (root / folder).mkdir(parents=True)
        for name, examples in (("train", data.train), ("dev", data.dev["dev"]), ("test", data.dev["dev"])):
            names = ("index", *columns) if name == "test" else (*columns, "label")
            lines = ["\t".join(names)]
            for index, example in enumerate(examples):
                texts = [text for text in (example.text_a, example.text_b) if text is not None]
                row = [str(index), *texts] if name == "test" else [*texts, words[int(example.label or 0)]]
                lines.append("\t".join(row))
            (root / folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    cola = sample_task("cola", num_train=40, num_dev=20)
    (root / "CoLA").mkdir()
    for name, examples in (("train", cola.train), ("dev", cola.dev["dev"])):
        (root / "CoLA" / f"{name}.tsv").write_text("".join(f"x\t{e.label}\t\t{e.text_a}\n" for e in examples))
    with (root / "CoLA" / "train.tsv").open("a") as file:
        file.write("torn\n")
    (root / "mood").mkdir()
    given = {"text": ["says"], "labels": ["no", "yes"], "metrics": ["macro_f1"], "train": "a.jsonl", "dev": "b.jsonl"}
    (root / "mood" / "task.json").write_text(json.dumps({**given, "label": "is_good", "test": "c.jsonl"}))
    (root / "mood" / "c.jsonl").write_text('{"says": "the code is good"}')
    mood = sample_task("sst2", num_train=30, num_dev=10, seed=5)
    for name, examples in (("a", mood.train), ("b", mood.dev["dev"])):
        lines = [json.dumps({"says": e.text_a, "is_good": ["no", "yes"][int(e.label or 0)]}) for e in examples]
        (root / "mood" / f"{name}.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    workspace = Workspace(tmp_path_factory.mktemp("evaluate"))
    write_tasks(workspace.folder / "tasks")
    save_detector(workspace.folder / "encoder")
    (workspace.packages / "sitecustomize.py").write_text(FAULTS)
    output = workspace.run(
        "evaluate_flow.py", "run", "--model", "encoder", "--glue", "tasks", "--tasks", "rte,cola,sst2,mood",
        "--preset", "tiny", "--seeds", "2", "--on_bad_text", "skip", "--max-workers", "2",
    )  # fmt: skip
    run, client = workspace.latest("EvaluateFlow"), workspace.mlflow()
    artifacts = client.download_artifacts(run["start"].task["plan"].data["mlflow_run_id"], "", str(workspace.folder))
    return Evaluated(run, output, client, Path(artifacts))


def test_what_failed_is_tried_again_then_left_out_by_name(evaluated: Evaluated) -> None:
    assert evaluated.run.successful
    assert evaluated.output.count("rte seed 1 failed at the") == 2
    assert "failed and left out: rte seed 1 (RuntimeError: injected)" in evaluated.output
    assert "failed and left out: sst2 seed 0 (its machine was lost, twice)" in evaluated.output
    scores = json.loads((evaluated.artifacts / "scores.json").read_text())
    counts = {row["task"]: row["pretrained"]["n"] for row in scores["rows"]}
    assert [row["task"] for row in scores["rows"]] == ["rte", "cola", "sst2", "mood"]  # as they were asked for
    assert counts == {"rte": 1, "cola": 2, "sst2": 1, "mood": 2}  # cola's first attempt was killed, its second not
    assert {(each["task"], each["seed"]) for each in scores["failures"]} == {("rte", 1), ("sst2", 0)}
    assert {row["task"]: list(row["pretrained"]["values"]) for row in scores["rows"]}["sst2"] == ["1"]


def test_the_table_is_there_as_json_markdown_page_and_card(evaluated: Evaluated) -> None:
    from metaflow.cards import get_cards

    markdown = (evaluated.artifacts / "scores.md").read_text()
    assert "| rte | accuracy | 1 |" in markdown
    assert "- failed and left out: rte seed 1 (RuntimeError: injected)\n" in markdown
    assert "\nencoder, weights " in markdown
    assert "mood not of GLUE" in markdown
    assert "macro_f1" in (evaluated.artifacts / "pages" / "scores.html").read_text()
    assert len(list(get_cards(evaluated.run["gather_scores"].task))) == 1


def test_broken_rows_that_were_left_out_are_counted_in_the_end(evaluated: Evaluated) -> None:
    assert json.loads((evaluated.artifacts / "scores.json").read_text())["skipped"] == {"cola": 1}
    assert "broken rows left out: 1 of cola" in evaluated.output


def test_the_zip_answers_the_test_sets_that_there_are(evaluated: Evaluated) -> None:
    with zipfile.ZipFile(evaluated.artifacts / "submission.zip") as archive:
        assert sorted(archive.namelist()) == ["RTE.tsv", "SST-2.tsv"]
        lines = archive.read("RTE.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(index) for index in range(20)]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}
    own = (evaluated.artifacts / "predictions" / "mood.tsv").read_text().splitlines()
    assert own in (["index\tprediction", "0\tno"], ["index\tprediction", "0\tyes"])
    assert "it lacks CoLA.tsv" in " ".join(evaluated.output.split())


def test_mlflow_has_a_child_for_each_with_its_fate(evaluated: Evaluated) -> None:
    plan = evaluated.run["start"].task["plan"].data
    parent = evaluated.client.get_run(plan["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["weights.digest"] == plan["model"]["digest"]
    assert parent.data.metrics["finetunings.failed"] == 2
    scores = json.loads((evaluated.artifacts / "scores.json").read_text())
    rte = next(row for row in scores["rows"] if row["task"] == "rte")
    assert parent.data.metrics["rte.accuracy.pretrained"] == rte["pretrained"]["median"]
    assert parent.data.metrics["average.electra"] == scores["averages"]["electra"]["value"]
    found = evaluated.client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    fates = {run.info.run_name: run.info.status for run in found}
    assert fates["rte seed 1"] == "FAILED"
    assert {name for name, fate in fates.items() if fate == "FINISHED"} == {
        "rte seed 0", "cola seed 0", "cola seed 1", "sst2 seed 1", "mood seed 0", "mood seed 1",
    }  # fmt: skip
    assert set(found[0].data.tags) >= {"model.address", "weights.digest", "tokenizer.digest"}


def test_bad_input_ends_in_start(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("bad"))
    output = workspace.run("evaluate_flow.py", "run", "--model", "nowhere", succeeds=False)
    assert "model 'nowhere' is not a folder. Give models:/NAME@ALIAS, a folder" in " ".join(output.split())
