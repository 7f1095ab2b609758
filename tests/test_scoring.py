"""What is made of fine-tunings that are done: which were lost, what MLflow is told, and the way back from the model."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metaflow.exception import MetaflowExceptionWrapper
from metaflow.plugins.catch_decorator import FailureHandledByCatch
from registry_toys import sheet_of

from fast_electra_core.config import ScoringConfig
from fast_electra_core.errors import DataError, StoreError, TrackingError
from steps import scoring, tracking
from steps.finetune import job_key
from steps.score_sheet import key_of
from steps.store import Store

JOB = {"task": "rte", "seed": 0, "untrained": False, "rate": None}


def test_a_fine_tuning_that_fails_once_is_done_again_and_its_result_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = [RuntimeError("no memory"), {**JOB, "scores": {"accuracy": 0.5}}]

    def once(*_: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(scoring, "_finetune", once)
    assert scoring._twice({}, "encoder", JOB) == {**JOB, "scores": {"accuracy": 0.5}}
    outcomes += [RuntimeError("no memory"), ValueError("no text"), {}]
    assert scoring._twice({}, "encoder", JOB) == {**JOB, "failed": "ValueError: no text"}
    assert outcomes == [{}]  # there is no third time
    with pytest.raises(StoreError, match="S3 is away"):
        outcomes[:] = [StoreError("S3 is away"), {}]
        scoring._twice({}, "encoder", JOB)
    assert outcomes == [{}]


@pytest.mark.parametrize("kind", [OSError, RuntimeError])  # a library of Rust's has errors of its own
def test_a_full_disk_is_no_fault_of_a_fine_tunings(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def full(*_: Any) -> None:
        raise kind("cannot write: No space left on device (os error 28)")

    monkeypatch.setattr(scoring, "_finetune", full)
    with pytest.raises(OSError, match=r"^cannot write: No space left on device \(os error 28\)$"):
        scoring._twice({}, "encoder", JOB)


def test_an_error_of_a_task_is_not_gathered_as_a_machine_that_was_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resume` takes over a task that has been caught as it is: without its fine-tunings, whatever was mended."""
    machine = MetaflowExceptionWrapper(FailureHandledByCatch(2))
    server = MetaflowExceptionWrapper(TrackingError("the server is away"))
    monkeypatch.setattr(scoring, "connect", lambda plan: store)
    monkeypatch.setattr("steps.trace._mark", lambda plan, status: None)
    config = ScoringConfig(glue="folder", tasks="rte", seeds=1, store=store.root).to_dict()
    plan = {"config": config, "tasks": {"rte": {"train": 9}}, "run_key": "runs/1", "mlflow_run_id": "run"}
    with pytest.raises(DataError, match=r"missing, their task ended in: the server is away\. .* `resume finetune`"):
        scoring.gather_scores(plan, [], [machine, server])
    with pytest.raises(DataError, match=r"every fine-tuning failed, first rte seed 0 \(its machine was lost, twice\)"):
        scoring.gather_scores(plan, [], [machine])


def test_a_lost_fine_tuning_is_looked_up_and_all_come_back_by_task_seed_and_start(store: Store, tmp_path: Path) -> None:
    config = ScoringConfig(glue="folder", tasks="rte,cola", seeds=2).to_dict()
    plan = {"config": config, "tasks": {"rte": {"train": 9}, "cola": {"train": 9}}, "run_key": "runs/1"}
    stored = {**JOB, "seed": 1, "scores": {"accuracy": 0.5}}
    (tmp_path / "result.json").write_text(json.dumps(stored))
    (tmp_path / "done").mkdir()
    (tmp_path / "result.json").rename(tmp_path / "done" / "result.json")
    store.put_folder(tmp_path / "done", job_key("runs/1", stored))
    cola = {**JOB, "task": "cola"}
    came = [{**cola, "scores": {"matthews": 0.5}}, {**cola, "untrained": True, "failed": "OSError: full"}]
    found = scoring._with_lost_ones(plan, came, store)
    assert [(each["task"], each["seed"], each["untrained"], each.get("failed", "")) for each in found] == [
        ("rte", 0, False, "its machine was lost, twice"),
        ("rte", 0, True, "its machine was lost, twice"),
        ("rte", 1, False, ""),
        ("rte", 1, True, "its machine was lost, twice"),
        ("cola", 0, False, ""),
        ("cola", 0, True, "OSError: full"),
        ("cola", 1, False, "its machine was lost, twice"),
        ("cola", 1, True, "its machine was lost, twice"),
    ]
    assert found[2] == stored and found[4] == came[0]


@pytest.mark.parametrize(
    ("untrained", "keeps", "dropped"), [(False, True, [JOB]), (True, True, []), (False, False, [])]
)
def test_a_fine_tuning_is_a_run_of_its_own_with_its_curve_and_drops_the_models_that_it_beats(
    untrained: bool, keeps: bool, dropped: list[Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import finetune, task_models

    job, found, asked = {**JOB, "untrained": untrained}, list[Any](), dict[str, Any]()
    result = {
        "curve": [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}],
        "num_steps": 5, "scores": {"accuracy": 0.75}, "seconds": 1.0,
    }  # fmt: skip
    (tmp_path / "encoder").mkdir()
    store.put_folder(tmp_path / "encoder", "encoder")

    @contextlib.contextmanager
    def child(plan: Any, name: str, *, params: Any) -> Iterator[str]:
        found.append((name, params))
        yield "its run"

    def run(config: Any, **given: Any) -> Any:
        asked.update(given)
        return result

    beaten: list[Any] = []
    monkeypatch.setattr(scoring, "connect", lambda plan: store)
    monkeypatch.setattr(scoring, "child", child)
    monkeypatch.setattr(scoring, "log_task", lambda plan, *given: found.append(given))
    monkeypatch.setattr(finetune, "run", run)
    monkeypatch.setattr(task_models, "drop_beaten", lambda _, key, job, seeds: beaten.append((key, job, seeds)))
    monkeypatch.setattr(tracking, "log_metrics", lambda *given: found.append(given))
    config = ScoringConfig(glue="folder", tasks="rte", seeds=2, keep_task_models=keeps).to_dict()
    plan = {"config": config, "tasks": {"rte": {"digest": "of rte"}}, "run_key": "runs/1"}
    assert scoring._finetune(plan, "encoder", job) == result
    assert found == [
        ("rte seed 0 untrained" if untrained else "rte seed 0", job),
        ("its run", "rte"),
        ("its run", [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}, {"step": 5, "accuracy": 0.75}]),
    ]
    assert beaten == [("runs/1", each, 2) for each in dropped]
    assert asked["encoder_folder"] == store.get_folder("encoder")
    assert (asked["job"], asked["digest"], asked["key"]) == (job, "of rte", job_key("runs/1", job))


def test_an_evaluation_ends_with_its_table_its_tags_and_the_way_from_the_version_to_its_scores(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import closing_table

    done, asked = list[Any](), dict[str, Any]()

    def table(**given: Any) -> str:
        asked.update(given)
        return "the table"

    monkeypatch.setattr(closing_table, "closing_table", table)
    monkeypatch.setattr(scoring, "connect", lambda plan: done.append("connect"))
    monkeypatch.setattr(scoring, "model_tags", lambda plan: {"weights.digest": "d"})
    monkeypatch.setattr(scoring, "finish", lambda plan: done.append("finish"))
    monkeypatch.setattr(scoring, "_note_scores", lambda plan, scores: done.append(scores))
    for name in ("log_text", "set_tags"):
        monkeypatch.setattr(tracking, name, lambda *given: done.append(given))
    config = {"store": store.root, "tracking_uri": "http://mlflow", "glue": "folder"}
    plan = {
        "config": config, "tasks": {"rte": {}}, "run_key": "runs/1", "mlflow_run_id": "run", "mlflow_url": "its page",
    }  # fmt: skip
    assert scoring.close_evaluate(plan, {"rows": []}, [{"name": "mine-rte"}]) == "the table"
    assert done == [
        "connect", ("run", "the table", "report.txt"), ("run", {"weights.digest": "d"}), {"rows": []}, "finish",
    ]  # fmt: skip
    assert asked["auxiliary"] is None and asked["browse"] == "its page"
    assert (asked["scores"], asked["task_models"]) == ({"rows": []}, [{"name": "mine-rte"}])


def test_seconds_are_of_what_ended_by_what_it_started_from() -> None:
    results = [
        {"untrained": False, "seconds": 1.0}, {"untrained": True, "seconds": 4.0}, {"untrained": False, "seconds": 2.0},
        {"untrained": True, "failed": "no memory"},
    ]  # fmt: skip
    assert scoring._seconds(results) == {"fine-tuning": 3.0, "fine-tuning, untrained": 4.0}


def test_metrics_are_medians_averages_of_several_tasks_and_how_many_went_wrong() -> None:
    scores = {
        "rows": [
            {"task": "rte", "metric": "accuracy", "pretrained": {"median": 0.75}, "untrained": {"median": 0.5}},
            {"task": "cola", "metric": "matthews", "pretrained": {"median": 0.25}, "untrained": None},
        ],
        "averages": {
            "electra": {"value": 0.5, "tasks": ["rte", "cola"]},
            "leaderboard": {"value": 1.0, "tasks": ["rte"]},
        },
        "failures": [{}, {}],
    }
    assert scoring._as_metrics(scores, [{"degenerate": True}, {"degenerate": False}, {}]) == {
        "rte.accuracy.pretrained": 0.75, "rte.accuracy.untrained": 0.5, "cola.matthews.pretrained": 0.25,
        "average.electra": 0.5, "finetunings.failed": 2, "finetunings.degenerate": 1,
    }  # fmt: skip


def test_a_registered_version_leads_to_its_scores_where_the_registry_may_be_written_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tagged: list[tuple[str, str, dict[str, str]]] = []
    monkeypatch.setattr(tracking, "set_version_tags", lambda *given: tagged.append(given))
    sheet = sheet_of({"rte": {0: 0.5, 1: 0.5}})
    plan = {"model": {"version": "mine/2"}, "mlflow_run_id": "run"}
    scoring._note_scores({**plan, "model": {"version": "not registered"}}, {"sheet": sheet})
    assert tagged == []
    scoring._note_scores(plan, {"sheet": sheet})
    assert tagged == [("mine", "2", {f"scores.{key_of(sheet)}": "run"})]

    def refuse(*_: Any) -> None:
        raise TrackingError("you may not")

    monkeypatch.setattr(tracking, "set_version_tags", refuse)
    scoring._note_scores(plan, {"sheet": sheet})
    assert caplog.messages == ["mine/2 does not lead to these scores: you may not"]


def test_a_task_takes_its_gpu_and_its_share_of_the_cores_and_does_its_pack_in_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import finetune, machine

    done: list[Any] = []
    monkeypatch.setattr(machine, "take_gpu", lambda index: done.append(("gpu", index)))
    monkeypatch.setattr(machine, "share_cores", lambda number: done.append(("tasks side by side", number)))
    monkeypatch.setattr(finetune, "list_packs", lambda config, tasks: [[]] * len(tasks))
    monkeypatch.setattr(finetune, "in_turn", lambda pack, config, *, store, run_key: [*reversed(pack), run_key])
    monkeypatch.setattr(scoring, "connect", lambda plan: store)
    monkeypatch.setattr(scoring, "_twice", lambda plan, encoder_key, job: (encoder_key, job))
    config = ScoringConfig(glue="folder", tasks="rte", store=store.root).to_dict()
    plan = {"config": config, "tasks": {"rte": {}, "cola": {}, "sst2": {}}, "run_key": "runs/1"}
    pack: Any = ["first", "second"]
    results = scoring.finetune(plan, "encoder", pack, index=5)
    assert results == [("encoder", "second"), ("encoder", "first"), ("encoder", "runs/1")]
    assert done == [("gpu", 5), ("tasks side by side", 3)]


def test_test_answers_are_artifacts_the_users_own_under_the_tasks_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(tracking, "log_text", lambda *given: done.append(given))
    monkeypatch.setattr(tracking, "log_file", lambda run_id, path: done.append((run_id, path.name)))
    answered: dict[str, Any] = {"scores": {"accuracy": 0.5}, "main_metric": "accuracy", "learning_rate": 0.1}
    answered["test_predictions"] = {"test": [1, 0]}
    mood = {**JOB, **answered, "task": "mood", "labels": ["no", "yes"]}
    plan = {"mlflow_run_id": "run"}
    found = scoring._log_answers(plan, [mood], store)
    assert found["own_answers"] == ["predictions/mood.tsv"]
    assert done == [("run", "index\tprediction\n0\tyes\n1\tno\n", "predictions/mood.tsv")]  # GLUE's zip would be empty
    done.clear()
    found = scoring._log_answers(plan, [{**JOB, **answered, "labels": ["entailment", "not_entailment"]}], store)
    assert (found["submission"]["files"], found["own_answers"]) == (["RTE.tsv"], [])
    assert done == [("run", "submission.zip")]


def test_where_some_fine_tunings_failed_the_scores_are_of_the_others_and_all_is_in_mlflow(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from steps import report, run_charts, scores

    done: list[Any] = []
    rows = [
        {"task": "rte", "metric": "accuracy", "is_main": True, "pretrained": {"median": 0.75}, "untrained": None},
        {"task": "rte", "metric": "f1", "is_main": False, "pretrained": {"median": 0.5}, "untrained": None},
    ]
    found = {"rows": rows, "averages": {}, "failures": [{}]}
    results = [{**JOB, "scores": {}}, {**JOB, "seed": 1, "failed": "no memory"}]
    monkeypatch.setattr(scoring, "connect", lambda plan: store)
    monkeypatch.setattr(scoring, "_with_lost_ones", lambda plan, came, store: [*came, results[1]])
    monkeypatch.setattr(scoring, "_summary", lambda plan, results, store: {**found, "of": len(results)})
    monkeypatch.setattr(scoring, "_log_answers", lambda plan, results, store: {"own_answers": []})
    monkeypatch.setattr(report, "glue_page", lambda scores, suite, *, run: f"page of {run}, {suite}")
    monkeypatch.setattr(scores, "as_markdown", lambda scores, *, heading: f"# {heading}")
    monkeypatch.setattr(
        run_charts, "scores", lambda rows: SimpleNamespace(figure=lambda: [row["metric"] for row in rows])
    )
    for name in ("log_text", "log_dict", "log_figure", "log_results"):
        monkeypatch.setattr(tracking, name, lambda *given: done.append(given))
    monkeypatch.setattr(report, "suite_name", lambda glue, tasks: "the suite")
    config = ScoringConfig(glue="folder", tasks="rte", store=store.root).to_dict()
    plan = {"config": config, "tasks": {"rte": {}}, "run_key": "runs/1", "mlflow_run_id": "run", "pathspec": "Flow/1"}
    whole = {**found, "of": 2, "own_answers": []}
    assert scoring.gather_scores(plan, results[:1]) == (whole, "page of Flow/1, the suite")
    assert done == [
        ("run", "page of Flow/1, the suite", "pages/scores.html"),
        ("run", whole, "scores.json"),
        ("run", "# the suite", "scores.md"),
        ("run", ["accuracy"], "charts/scores.png"),
        ("run", {
            "rte.accuracy.pretrained": 0.75, "rte.f1.pretrained": 0.5, "finetunings.failed": 1,
            "finetunings.degenerate": 0,
        }),
    ]  # fmt: skip
    assert caplog.messages == ["left out: rte seed 1 (no memory)"]


def test_task_models_are_registered_with_the_runs_lineage_and_lead_to_what_they_were_fine_tuned_from(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import task_models

    connected: list[Any] = []
    monkeypatch.setattr(scoring, "connect", lambda plan: connected.append("yes"))
    monkeypatch.setattr(scoring, "made_of", lambda plan: {"weights.digest": "d"})
    monkeypatch.setattr(task_models, "register", lambda plan, scores, encoder, tags: [scores, encoder, tags])
    monkeypatch.setattr(tracking, "model_version_info", lambda address: {"of": address})
    model = {"address": "models:/mine@champion", "version": "mine/2", "digest": "d"}
    plan = {
        "config": {"store": store.root}, "run_key": "runs/1", "mlflow_run_id": "run", "config_digest": "c",
        "code": {"code.git_sha": "5bd69d5"}, "model": model,
    }  # fmt: skip
    assert scoring.register_task_models(plan, {"task_models": []}, pathspec="Flow/1") == []
    scores = {"task_models": [{"task": "rte"}]}
    tags = {
        "metaflow.pathspec": "Flow/1/register/2", "mlflow.parent_run_id": "run", "config.digest": "c",
        "code.git_sha": "5bd69d5", "weights.digest": "d",
    }  # fmt: skip
    path = "Flow/1/register/2"
    assert scoring.register_task_models(plan, scores, {"name": "new"}, pathspec=path) == [scores, {"name": "new"}, tags]
    encoder = {"of": "models:/mine/2", "digest": "d"}
    assert scoring.register_task_models(plan, scores, pathspec=path) == [scores, encoder, tags]
    plan["model"] = {**model, "address": "hub:theirs", "version": "not registered"}
    encoder = {"name": "hub:theirs", "digest": "d"}
    assert scoring.register_task_models(plan, scores, pathspec=path) == [scores, encoder, tags]
    assert len(connected) == 4
