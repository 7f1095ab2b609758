"""Claims about `fast-electra lineage`, on models of a real SQLite registry, with faults put into what they name."""

import json
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import new_database
from registry_toys import client
from toys import electra_config

from fast_electra_core.config import PretrainConfig
from fast_electra_core.tokenizer import tokenizer_digest, train_tokenizer
from steps import reproduce, tracking
from steps.command import main
from steps.corpus import resolve_corpus
from steps.lineage_checks import DIFFERS, Check
from steps.lineage_tree import Node
from steps.lineage_words import as_text
from steps.model_source import weights_digest
from steps.provenance import LINEAGE_FILE, code_version, record_of
from steps.register import AUXILIARY_NAME, MODEL_NAME
from steps.reproduce import _environment_lines
from steps.store import Store
from steps.tasks import check_tasks
from steps.trace import auxiliary_tags, lineage_tags
from steps.tracking import connection

CHAMPION, AUXILIARY = f"models:/{MODEL_NAME}/1", f"models:/{AUXILIARY_NAME}/1"
GIVEN = {"corpus": "text", "num_steps": 7, "tasks": "rte", "preset": "tiny", "batch_size": None, "distill_from": ""}
Made = dict[str, Any]


def save_model(folder: Path, kind: str, seed: int) -> Path:
    import torch
    import transformers

    tokenizer = train_tokenizer(iter(["the cat sat on the mat"] * 20), vocab_size=300)
    torch.manual_seed(seed)
    getattr(transformers, kind)(electra_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def register(plan: Made, name: str, folder: Path, tags: Made, task: str) -> Made:
    run_id = tracking.start_child(
        plan["config"]["tracking_uri"], plan["mlflow_run_id"], name="pre-training", key="p", tags={}, params={}
    )
    what = {"task": task, "example": "the [MASK] sat", "card": "", "description": ""}
    return tracking.register_model(run_id=run_id, name=name, folder=folder, tags=tags, metrics={}, **what)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_model(folder / kind, kind, 0) for kind in ("ElectraForMaskedLM", "ElectraForPreTraining")}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database whose tables are made once."""
    return new_database(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def made(tmp_path: Path, models: dict[str, Path], uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """A main model and its auxiliary, version 1 of each, made of two files of text; the plan of the main run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        (tmp_path / "text" / f"{name}.txt").write_text(f"words of {name}")
    tracking.connect(uri)
    config = PretrainConfig(preset="tiny", corpus="text", num_steps=7, tasks="rte", tracking_uri=uri)
    corpus = resolve_corpus("text", store=Store(config.store), text_field="text", shard_megabytes=1.0)
    masked, main_model = models["ElectraForMaskedLM"], models["ElectraForPreTraining"]
    from fast_electra_core.tokenizer import load_tokenizer

    plan: Made = {
        "pathspec": "PretrainFlow/12",
        "config": config.to_dict(),
        "config_digest": config.digest(),
        "corpus": corpus.to_dict(),
        "tokenizer_key": f"tokenizers/{tokenizer_digest(load_tokenizer(masked))}",
        "code": code_version(),
    }
    plan["mlflow_run_id"] = tracking.start_parent(uri, "tests", name="PretrainFlow/12", tags={}, params={})
    digest = weights_digest(masked)
    auxiliary = register(
        plan, AUXILIARY_NAME, masked, lineage_tags(plan, "a") | {"auxiliary.digest": digest}, "fill-mask"
    )
    candidate = {"address": AUXILIARY, "digest": digest, "registry": {**auxiliary, "tags": {}}}
    plan |= {"tasks": check_tasks(config), "candidates": [candidate]}
    tracking.log_dict(plan["mlflow_run_id"], record_of(plan, GIVEN), LINEAGE_FILE)
    schedule = {"schedule": "exponential", "temperature_start": 2.0, "temperature_decay": 0.1, "temperature_end": 1.0}
    tags = {
        **lineage_tags(plan, "PretrainFlow/12/register/9"),
        **schedule,
        "weights.digest": weights_digest(main_model),
    }
    tags |= auxiliary_tags({**candidate, "members": [candidate]})
    register(plan, MODEL_NAME, main_model, tags, "feature-extraction")
    tracking.set_alias(MODEL_NAME, "champion", "1")
    yield plan
    tracking.connect(uri)
    for model in client().search_registered_models():
        client().delete_registered_model(model.name)


def lineage(made: Made, capsys: pytest.CaptureFixture[str], *options: str, address: str = CHAMPION) -> tuple[int, str]:
    """The command's exit code and what it prints."""
    capsys.readouterr()
    code = main(["lineage", address, "--tracking_uri", made["config"]["tracking_uri"], *options])
    return code, capsys.readouterr().out


def verdicts(made: Made, capsys: pytest.CaptureFixture[str], address: str = CHAMPION) -> dict[str, str]:
    """Verdict of each check of the version and of its parts, but for the models that it is made from."""
    _, shown = lineage(made, capsys, "--json", address=address)
    tree = json.loads(shown)
    return {check["what"]: check["verdict"] for node in [tree, *tree["parts"]] for check in node["checks"]}


def test_what_is_as_it_was_is_ok_to_the_last_file(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts(made, capsys)
    expected = {
        "weights.digest", "model.sha256", "tokenizer.digest", "corpus.digest", "file a.txt", "file b.txt",
        "auxiliary.digest", "task rte", "code.git_sha", "config.digest",
    }  # fmt: skip
    assert {name for name, verdict in found.items() if verdict == "ok"} - {"code.digest"} == expected
    code, shown = lineage(made, capsys, address=f"models:/{MODEL_NAME}@champion")
    assert code == 0
    assert shown.startswith("fast-electra version 1  @champion\n")
    assert "fast-electra-auxiliary version 1" in shown and "num_steps: 7" in shown and "DIFFER" not in shown


def test_a_file_of_the_text_that_changed_is_named_and_the_exit_code_is_1(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text/b.txt").write_text("other words")
    Path("text/c.txt").write_text("more words")
    code, shown = lineage(made, capsys)
    assert code == 1
    assert "[DIFFERS] file b.txt" in shown and "[DIFFERS] file c.txt : was not there" in shown
    assert "[ok]      file a.txt" in shown and "differs: text: corpus.digest" in shown


def test_text_that_is_gone_cannot_be_checked_and_differs_in_nothing(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("text").iterdir():
        path.unlink()
    Path("text").rmdir()
    code, shown = lineage(made, capsys)
    assert code == 0
    assert "[gone]    corpus.digest" in shown and "there is no 'text'" in shown


def test_weights_that_changed_in_the_registry_differ(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    model_id = tracking.model_version_info(CHAMPION)["model_id"]
    place = Path(client().get_logged_model(model_id).artifact_location.removeprefix("file://"))
    (path,) = place.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = verdicts(made, capsys)
    assert (found["weights.digest"], found["model.sha256"], found["tokenizer.digest"]) == ("differs", "differs", "ok")


def test_weights_are_compared_with_those_that_are_expected(
    made: Made, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    digest = weights_digest(models["ElectraForPreTraining"])
    assert lineage(made, capsys, "--expect_weights", digest)[0] == 0
    code, shown = lineage(made, capsys, "--expect_weights", "0123456789abcdef")
    assert code == 1
    assert f"[DIFFERS] weights as expected 0123456789abcdef: now {digest}" in shown


def test_a_digest_that_is_expected_but_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--tracking_uri", f"sqlite:///{tmp_path}/none.db", "--expect_weights", "")
    assert main(["lineage", CHAMPION, *options]) == 2
    assert "expect_weights must be a digest, as weights.digest has it, got ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ("--no_checks", "--expect_weights", "0123456789abcdef"),
        ("--reproduce", "--json"),
        ("--reproduce", "--no_checks"),
    ],
)
def test_options_that_would_have_no_effect_together_are_refused(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", CHAMPION, "--tracking_uri", f"sqlite:///{tmp_path}/none.db", *options]) == 2
    assert "leave one of the two out" in capsys.readouterr().err


def test_a_parameter_that_is_not_the_run_s_differs(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**made, "config": {**made["config"], "learning_rate": 1.0}}
    tracking.log_dict(made["mlflow_run_id"], record_of(other, GIVEN), LINEAGE_FILE)
    assert verdicts(made, capsys)["config.digest"] == "differs"


def test_an_auxiliary_lists_the_models_that_use_it(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = lineage(made, capsys, "--json", address=AUXILIARY)
    (users,) = [part["facts"] for part in json.loads(shown)["parts"] if part["title"] == "used by"]
    assert users == {"fast-electra version 1": "as its auxiliary"}


def test_an_auxiliary_that_was_removed_is_said_to_be_gone(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    client().delete_model_version(AUXILIARY_NAME, "1")
    assert verdicts(made, capsys)["auxiliary.digest"] == "gone"
    code, shown = lineage(made, capsys)
    assert code == 0 and "fast-electra-auxiliary/1, which is gone from the registry" in shown


def test_an_auxiliary_of_other_weights_than_were_used_differs(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    tracking.set_version_tags(MODEL_NAME, "1", {"auxiliary.digest": "0123456789abcdef"})
    assert verdicts(made, capsys)["auxiliary.digest"] == "differs"


def test_an_ensemble_with_a_member_out_of_a_folder_cannot_be_checked_and_does_not_differ(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"version": f"{AUXILIARY_NAME}/1,not registered", "address": f"{AUXILIARY},folder", "digest": "of the two"}
    tracking.set_version_tags(MODEL_NAME, "1", {f"auxiliary.{name}": value for name, value in both.items()})
    assert verdicts(made, capsys)["auxiliary.digest"] == "gone"
    assert lineage(made, capsys)[0] == 0


def test_what_would_steer_a_terminal_is_shown_and_not_obeyed() -> None:
    check = Check("weights.digest", "ab", DIFFERS, "now cd\x1b[2K\r[ok]")
    shown = as_text(Node("model\x1b[1A", {"corpus.address": "text\u202e\x07"}, [check]))
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "model\\x1b[1A" in shown and "text\\u202e\\x07" in shown
    assert "[DIFFERS] weights.digest ab: now cd\\x1b[2K [ok]" in shown


def test_a_version_without_lineage_tags_says_which_and_shows_what_is_there(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for tag in ("corpus.digest", "temperature_decay"):
        client().delete_model_version_tag(MODEL_NAME, "1", tag)
    code, shown = lineage(made, capsys)
    assert code == 1
    assert "LINEAGE INCOMPLETE, tags missing: corpus.digest, temperature_decay" in shown
    assert "[ok]      weights.digest" in shown


def test_without_checks_no_file_is_read(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text/b.txt").write_text("other words")
    code, shown = lineage(made, capsys, "--no_checks")
    assert code == 0
    assert "nothing was checked" in shown and "file b.txt" in shown


def by_auxiliary_flow(made: Made) -> None:
    """The auxiliary was made by a run of its own."""
    record = {**record_of({**made, "pathspec": "AuxiliaryFlow/11"}, {"corpus": "text"}), "candidates": []}
    parent = tracking.start_parent(made["config"]["tracking_uri"], "tests", name="AuxiliaryFlow/11", tags={}, params={})
    tracking.log_dict(parent, record, LINEAGE_FILE)
    tracking.set_version_tags(AUXILIARY_NAME, "1", {"mlflow.parent_run_id": parent})


def test_the_reproduction_names_what_was_given_by_absolute_paths_and_the_auxiliary_as_it_will_be_called(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_auxiliary_flow(made)
    code, shown = lineage(made, capsys, "--reproduce")
    assert code == 0
    first, second = [shlex.split(line) for line in shown.splitlines() if line.startswith("python flows/")]
    ours = ["--store", "reproduced/store", "--tracking_uri", "sqlite:///reproduced/mlflow.db"]
    ours += ["--experiment", "reproduced"]
    text = ["--corpus", f"{tmp_path}/text"]
    assert first == ["python", "flows/auxiliary_flow.py", "run", *text, *ours]
    short = ["--num_steps", "7", "--tasks", "rte", "--preset", "tiny"]
    given = [*text, *short, "--distill_from", "", "--auxiliary", AUXILIARY]
    assert second == ["python", "flows/pretrain_flow.py", "run", *given, *ours]
    sha = made["code"]["code.git_sha"].removesuffix("-dirty")
    assert f"git worktree add --detach ../fast-electra-{sha[:10]} {sha}" in shown


@pytest.mark.parametrize("name", [MODEL_NAME, f"{MODEL_NAME}-rte"])
def test_the_reproduction_names_every_member_of_an_ensemble_and_no_other_candidate_of_a_main_model(
    name: str, made: Made, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task model made along has no tags of the auxiliary: all that were to choose from are named, to choose again."""
    by_auxiliary_flow(made)
    outside, unused = ({"address": address, "digest": address, "registry": None} for address in ("hub:x", "unused"))
    members = [outside, made["candidates"][0]]
    record = record_of({**made, "candidates": [made["candidates"][0], unused, outside]}, {"ensemble_size": 2})
    tracking.log_dict(made["mlflow_run_id"], record, LINEAGE_FILE)
    expected = f"{AUXILIARY},{tmp_path}/unused,hub:x"
    if name == MODEL_NAME:
        tags = auxiliary_tags({"digest": "of both", "address": f"hub:x,{AUXILIARY}", "members": members})
        tracking.set_version_tags(name, "1", tags)
        expected = f"hub:x,{AUXILIARY}"
    else:
        tags = {"mlflow.parent_run_id": made["mlflow_run_id"], **made["code"]}
        register(made, name, models["ElectraForPreTraining"], tags, "feature-extraction")
    code, shown = lineage(made, capsys, "--reproduce", address=f"models:/{name}/1")
    assert code == 0
    words = next(shlex.split(line) for line in shown.splitlines() if "flows/pretrain_flow.py" in line)
    assert words[words.index("--auxiliary") + 1] == expected


def test_the_reproduction_of_a_later_task_model_is_not_taken_for_the_one_that_pre_training_makes_along(
    made: Made, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pathspec, task_model = "EvaluateFlow/13", f"{MODEL_NAME}-rte"
    outside = {"address": "hub:masked", "digest": made["candidates"][0]["digest"], "registry": None}
    record = record_of({**made, "candidates": [outside]}, GIVEN)
    tracking.log_dict(made["mlflow_run_id"], record, LINEAGE_FILE)
    parent = tracking.start_parent(made["config"]["tracking_uri"], "tests", name=pathspec, tags={}, params={})
    scored = {name: made[name] for name in ("config", "config_digest", "code", "tasks")}
    scored |= {"pathspec": pathspec, "model": {"address": CHAMPION, "digest": "x", "version": f"{MODEL_NAME}/1"}}
    tracking.log_dict(parent, record_of(scored, {"tasks": "rte"}), LINEAGE_FILE)
    tags = {"mlflow.parent_run_id": parent, **made["code"]}
    register({**made, "mlflow_run_id": parent}, task_model, models["ElectraForPreTraining"], tags, "feature-extraction")
    code, shown = lineage(made, capsys, "--reproduce", address=f"models:/{task_model}/1")
    assert code == 0
    flows = [shlex.split(line)[1] for line in shown.splitlines() if line.startswith("python flows/")]
    assert flows == ["flows/pretrain_flow.py", "flows/evaluate_flow.py"]
    assert shown.splitlines()[-1].startswith(f"fast-electra lineage models:/{task_model}/2 --tracking_uri")


@pytest.mark.parametrize("sha", ["0123456; rm -rf x", "unknown", "--exec=x"])
def test_a_commit_that_is_none_is_written_into_no_script(
    sha: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    by_auxiliary_flow(made)
    tracking.set_version_tags(MODEL_NAME, "1", {"code.git_sha": sha})
    assert main(["lineage", CHAMPION, "--reproduce", "--tracking_uri", made["config"]["tracking_uri"]]) == 2
    refusal = capsys.readouterr().err
    assert "names no commit" in refusal or "does not say how to make it again" in refusal


def test_nothing_of_a_record_ends_a_comment_of_the_script() -> None:
    hostile = {"python": "3.11; rm -rf x", "processor": "x\nrm -rf x", "packages": {}, "device": "cpu"}
    lines = _environment_lines("0" * 40, hostile)
    assert [line for line in lines if "rm -rf" in line] == [
        "# it was trained on x rm -rf x; another processor may give other last bits"
    ]
    assert "python3.11 -m venv .venv" in lines


def test_a_version_that_does_not_say_how_it_was_made_cannot_be_written_out(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    client().delete_run(made["mlflow_run_id"])
    tracking.set_version_tags(MODEL_NAME, "1", {"mlflow.parent_run_id": ""})
    assert main(["lineage", CHAMPION, "--reproduce", "--tracking_uri", made["config"]["tracking_uri"]]) == 2
    assert "fast-electra/1 does not say how to make it again" in capsys.readouterr().err


def test_a_version_of_a_flow_that_is_not_written_out_says_where_to_look(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(reproduce._FLOWS, "PretrainFlow")
    assert main(["lineage", CHAMPION, "--reproduce", "--tracking_uri", made["config"]["tracking_uri"]]) == 2
    refusal = capsys.readouterr().err
    assert "fast-electra/1 was made by PretrainFlow; only runs of AuxiliaryFlow, EvaluateFlow can" in refusal
    assert refusal.endswith("fast-electra lineage models:/fast-electra/1\n")


# Bad input


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refusal prints."""
    capsys.readouterr()
    assert main(["lineage", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_unknown_model_alias_or_version_lists_those_there_are(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = ["--tracking_uri", made["config"]["tracking_uri"]]
    assert "registered: fast-electra, fast-electra-auxiliary" in refused(
        ["models:/fast-elektra@champion", *uri], capsys
    )
    assert "its aliases: champion (version 1)" in refused(["models:/fast-electra@best", *uri], capsys)
    assert "its versions: 1" in refused(["models:/fast-electra/9", *uri], capsys)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/none.db"
    line = refused([CHAMPION, "--tracking_uri", uri], capsys)
    assert f"no MLflow database can be read at {tmp_path}/none.db: there is no such file" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.db").write_text("words " * 400)
    line = refused([CHAMPION, "--tracking_uri", f"sqlite:///{tmp_path}/text.db"], capsys)
    assert f"no MLflow database can be read at {tmp_path}/text.db: file is not a database" in line


@pytest.mark.parametrize(
    ("revision", "what_to_do"),
    [
        ("bd07f7e963c5", "an older MLflow. Keep a copy of it, then bring it up to date: mlflow db upgrade sqlite:///"),
        ("ffffffffffff", "a newer MLflow than the 3."),
    ],
)
def test_a_database_of_another_mlflow_is_left_as_it_is_and_what_to_do_is_said(
    revision: str, what_to_do: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = new_database(tmp_path)
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute(f"update alembic_version set version_num = '{revision}'")
        database.execute("drop table logged_model_tags")  # MLflow by itself would now make the missing tables
    database.close()
    before = path.read_bytes()
    connection._check_schema.cache_clear()  # the experiment was made by a process that has since ended
    line = refused([CHAMPION, "--tracking_uri", uri], capsys)
    assert f"the database {uri} was made by {what_to_do}" in line
    assert path.read_bytes() == before


def test_a_server_that_denies_access_says_which_account_to_give(
    denying_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([CHAMPION, "--tracking_uri", denying_server], capsys)
    assert "Permission denied" in line and "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
