"""A year of RetrainFlow in a minute: deliveries of every kind, walked through the flow's own steps on a real store and
a real MLflow database, and what became of the champion."""

import contextlib
import json
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import write_text
from flow_walker import Walk, load_flow

from fast_electra_core.encoding import encode_documents
from fast_electra_core.errors import AuxiliaryError, ConfigError, DataError, LockError, StoreError, TrackingError
from fast_electra_core.models import set_output_bias
from fast_electra_core.tokenizer import train_tokenizer
from steps import retrain, tracking
from steps.lock import Lock
from steps.store import Store
from steps.tracking import champions

pytestmark = pytest.mark.slow
NAME = "fast-electra"


def sentences(seed: int, count: int) -> str:
    """Documents of two words each, of the words of `write_text`."""
    rng = random.Random(seed)
    beginnings, endings = ("ka", "mo", "ri", "te", "su", "lo", "na", "vi"), ("ra", "den", "lis", "to", "mu", "pel")
    words = [beginning + ending for beginning in beginnings for ending in endings]
    topics = [rng.sample(words, 2) for _ in range(count)]
    return "\n\n".join(" ".join(rng.choice(topic) for _ in range(rng.randrange(28, 60))) for topic in topics)


def foreign(count: int) -> str:
    """Documents of another language: its letters are known to the tokenizer, its words are not."""
    rng = random.Random(7)
    return "\n\n".join(" ".join(rng.choices(["dbqwx", "xwqbd", "zjfhg"], k=30)) for _ in range(count))


def save_auxiliary(folder: Path, texts: list[str], *, knows: str) -> Path:
    """A masked language model that says of every position how often each token stands in a text."""
    import numpy as np
    import torch
    from toys import electra_config
    from transformers import ElectraForMaskedLM

    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    torch.manual_seed(0)
    model = ElectraForMaskedLM(electra_config(len(tokenizer), max_position_embeddings=64))
    (ids,) = encode_documents(tokenizer.backend_tokenizer, iter([knows]))
    set_output_bias(model, np.bincount(ids, minlength=len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Place:
    """A corpus, an auxiliary, a store and a database; each month is one run of the flow."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.text = folder, folder / "text"
        self.text.mkdir()
        write_text(self.text / "january.txt", num_documents=200)
        (self.text / "rare.txt").write_text("\n\n".join(["dbqwx", "zjfhg", sentences(9, 20)]))
        texts = [path.read_text() for path in sorted(self.text.iterdir())]
        self.auxiliary = save_auxiliary(folder / "auxiliary", texts, knows=texts[0])
        self.foreign_auxiliary = save_auxiliary(folder / "foreign", texts, knows=foreign(9))
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.given: dict[str, Any] = {
            "preset": "tiny", "corpus": str(self.text), "corpus_licence": "CC0-1.0", "heldout_fraction": 0.1,
            "tasks": "rte", "seeds": 2, "finetune_max_examples": 8, "untrained_baseline": False,
            "test_predictions": False, "num_steps": 20, "continue_steps": 10, "checkpoint_every_steps": 10,
            "learning_rate": 0.01, "auxiliary": str(self.auxiliary), "waive_gates": "majority,replay",
            "store": str(folder / "store"), "tracking_uri": self.uri, "min_new_tokens": 2000, "promote": "always",
        }  # fmt: skip
        self.module = load_flow("retrain_flow")
        self.months: dict[str, Any] = {}

    def walk(self, run_id: str, module: ModuleType | None = None, **changes: Any) -> Walk:
        module = module or self.module
        return Walk(module, module.RetrainFlow, {**self.given, **changes}, run_id)

    def month(self, name: str, **changes: Any) -> None:
        """The month's run, or the error that it ended with; and whom it left as champion."""
        try:
            self.months[name] = self.walk(name, **changes)
        except (DataError, AuxiliaryError) as error:
            self.months[name] = error
        self.months[f"champion after {name}"] = tracking.aliases(NAME)["champion"]

    def lock(self, owner: str = "another/run") -> Lock:
        return Lock(Store(self.given["store"]), retrain.LOCK_NAME, owner=owner, lifetime_seconds=60)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("year"))
    text = place.text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        place.month("january")
        place.month("february")
        (text / "copy.txt").write_bytes((text / "january.txt").read_bytes())
        place.month("march")
        (text / "april.txt").write_text(sentences(1, 200))
        place.month("april", replay_fraction=0.5)
        (text / "may.txt").write_bytes(b"\xff\xfe\x00garbage\x81" * 500)
        place.month("may")
        (text / "may.txt").unlink()
        (text / "copy.txt").unlink()
        (text / "rare.txt").unlink()
        place.month("june")
        (text / "july.txt").write_text(foreign(200))
        place.month("july")
        place.month("july again", auxiliary=f"{place.auxiliary},{place.foreign_auxiliary}", promote="never")
        (text / "july.txt").unlink()
        (text / "april.txt").write_text(sentences(2, 200))
        place.month("august", promote="if_better", promotion_margin=1.0)
        place.month("september", promote="if_better", promotion_margin=1.0)
        (text / "april.txt").write_text(sentences(1, 200))
        (text / "october.txt").write_text(sentences(3, 4))
        place.month("october")
        place.lock().acquire()
        place.month("november")
        place.lock().release()
        yield place


def outcome(place: Place, month: str) -> dict[str, Any]:
    assert isinstance(place.months[month], Walk), place.months[month]
    found: dict[str, Any] = place.months[month].data.outcome
    return found


def test_the_champions_history_of_the_year(year: Place) -> None:
    tracking.connect(year.uri)
    entries = champions.throne(NAME).entries
    assert [(entry.version, entry.how) for entry in entries] == [("1", "promoted"), ("2", "promoted")]
    after = {name.removeprefix("champion after "): number for name, number in year.months.items() if " after " in name}
    assert [after[name] for name in ("january", "february", "march")] == ["1", "1", "1"]
    assert {number for name, number in after.items() if name not in ("january", "february", "march")} == {"2"}
    reasons = {
        number: tracking.model_version_info(f"models:/{NAME}/{number}")["tags"]["promotion.reason"] for number in "1234"
    }
    assert reasons["1"] == "champion until version 2: there was none"
    assert reasons["2"].startswith("champion: promote always; against version 1: ")
    assert reasons["3"] == "challenger: promote never"
    assert reasons["4"].startswith("challenger: against version 2: ") and "at least +1" in reasons["4"]


def test_without_a_champion_a_model_is_trained_from_scratch_on_all_the_text(year: Place) -> None:
    found, walked = outcome(year, "january"), year.months["january"]
    assert (found["way"], found["reason"]) == ("scratch", "there is no champion yet")
    assert found["files"] == {"new": 2, "changed": 0, "duplicates": 0, "kept": 0, "gone": 0}
    assert walked.data.plan["config"]["num_steps"] == 20 and walked.data.plan["initial_model"] is None
    assert found["is_promoted"] and found["forgetting"] == [] and found["champion_before"] is None


@pytest.mark.parametrize(
    ("month", "reason", "files"),
    [
        ("february", "no file holds text that the champion has not seen", {"kept": 2}),
        ("march", "no file holds text that the champion has not seen", {"kept": 2, "duplicates": 1}),
        ("june", "no file holds text that the champion has not seen", {"kept": 2, "gone": 1}),
        ("september", "version 4 was trained on this very text from this champion", {"kept": 1, "changed": 1}),
        ("october", "new tokens, fewer than 2,000 (min_new_tokens)", {"kept": 2, "new": 1}),
        ("november", "another run is at work: another/run since", {}),
    ],
)
def test_where_there_is_nothing_to_train_on_the_run_says_so_and_is_over(
    year: Place, month: str, reason: str, files: dict[str, int]
) -> None:
    found, walked = outcome(year, month), year.months[month]
    assert walked.steps == ["start", "choose", "end"]
    assert found["way"] == "nothing" and reason in found["reason"]
    assert {kind: count for kind, count in found["files"].items() if count and kind != "gone"} | (
        {"gone": 1} if month == "june" else {}
    ) == files
    assert "nothing to do: " in found["words"]
    assert len(walked.pages) == 1


def test_new_text_continues_the_champion_and_forgetting_is_seen(year: Place) -> None:
    found, walked = outcome(year, "april"), year.months["april"]
    config = walked.data.plan["config"]
    assert (found["way"], found["champion_before"], found["version"]) == ("continue", f"{NAME} 1", f"{NAME} 2")
    assert found["reason"] == "there is text that version 1 has not seen"
    assert found["files"] == {"new": 1, "changed": 0, "duplicates": 1, "kept": 2, "gone": 0}
    assert (config["initial_model"], config["num_steps"], config["seed"]) == (f"models:/{NAME}/1", 10, 1)
    assert [file["name"] for file in walked.data.plan["corpus"]["files"]] == ["april.txt"]
    first = next(row for row in walked.data.made["trained"]["curve"] if "learning_rate" in row)
    assert 0 < first["learning_rate"] <= 0.01 and walked.data.made["trained"]["curve"][-1]["step"] == 10  # re-warmed
    before = {row["text"]: row["before"]["heldout_rtd_loss"] for row in found["forgetting"]}
    after = {row["text"]: row["after"]["heldout_rtd_loss"] for row in found["forgetting"]}
    assert before.keys() == after.keys() == {"old", "new"} and before != after
    assert {row["task"]: row["before"] is not None for row in found["tasks"]} == {"rte": True}
    assert found["auxiliary"].startswith("kept; drift ")


def test_what_the_champion_scores_before_is_what_it_scored_when_it_was_trained(year: Place) -> None:
    """The held-out text of January, scored after January and before April, is the same."""
    trained = year.months["january"].data.made["trained"]["scores"]["heldout_rtd_loss"]
    (old,) = [row for row in outcome(year, "april")["forgetting"] if row["text"] == "old"]
    assert old["before"]["heldout_rtd_loss"] == pytest.approx(trained, rel=1e-5)


def test_only_new_text_is_tokenized_and_old_text_is_replayed_from_the_store(year: Place) -> None:
    january, april = (year.months[name].data for name in ("january", "april"))
    assert april.plan["old_shard_keys"] == january.text["shard_keys"]
    assert not set(april.text["shard_keys"]) & set(january.text["shard_keys"])
    assert april.plan["replay_fraction"] == 0.5
    record = tracking.load_dict(april.plan["mlflow_run_id"], "corpus.json")
    assert record is not None
    assert [file["name"] for file in record["files"]] == ["january.txt", "rare.txt", "april.txt"]
    assert [shard["key"] for shard in record["shards"]] == [*january.text["shard_keys"], *april.text["shard_keys"]]


def test_garbage_ends_the_run_with_the_files_name(year: Place) -> None:
    error = year.months["may"]
    assert isinstance(error, DataError) and "may.txt" in str(error) and "UTF-8" in str(error)


def test_text_that_is_strange_to_the_auxiliary_is_refused_with_the_numbers(year: Place) -> None:
    error = year.months["july"]
    assert isinstance(error, AuxiliaryError)
    assert "the new text is strange to it: its masked loss there is" in str(error)
    assert "at most 1 more is allowed (max_auxiliary_drift)" in str(error)


def test_another_auxiliary_that_knows_the_new_text_takes_the_place_of_the_strange_one(year: Place) -> None:
    found, walked = outcome(year, "july again"), year.months["july again"]
    assert found["auxiliary"].startswith(f"re-chosen: {year.foreign_auxiliary}; drift -")
    own, other = walked.data.candidates
    assert own["is_kept"] and own["drift"] > 1 and "strange" in own["reason"]
    assert not other["is_kept"] and other["ok"]
    assert not found["is_promoted"]


def test_a_file_rewritten_under_its_name_is_new_text_and_a_model_that_is_not_better_is_refused(year: Place) -> None:
    found = outcome(year, "august")
    assert found["files"] == {"new": 0, "changed": 1, "duplicates": 0, "kept": 1, "gone": 1}
    assert not found["is_promoted"] and found["promotion"].startswith("challenger: against version 2: ")
    assert year.months["august"].data.plan["config"]["seed"] == 2  # the second generation
    tags = tracking.model_version_info(f"models:/{NAME}/4")["tags"]
    assert (tags["retrain.generation"], tags["initial_model.version"]) == ("2", f"{NAME}/2")


def test_the_page_says_what_happened_and_why(year: Place) -> None:
    import mlflow.artifacts

    def page(month: str) -> str:
        run_id = year.months[month].data.plan["mlflow_run_id"]
        return str(mlflow.artifacts.load_text(f"runs:/{run_id}/report.html"))

    april = page("april")
    for words in ("What happened, and why", "the champion was continued on new text", "Before and after", "old text",
                  "The auxiliary on new text", "april.txt", "copy.txt"):  # fmt: skip
        assert words in april, words
    october = page("october")
    assert "Retraining: nothing to do" in october and "fewer than 2,000 (min_new_tokens)" in october
    nothing = year.months["october"].data.plan
    tags = tracking.run_record(nothing["mlflow_run_id"])["tags"]
    assert (tags["retrain.way"], tags["retrain.is_promoted"]) == ("nothing", "false")
    words = mlflow.artifacts.load_text(f"runs:/{nothing['mlflow_run_id']}/retraining.txt")
    assert words == outcome(year, "october")["words"]
    run_id = year.months["april"].data.plan["mlflow_run_id"]
    told = tracking.load_dict(run_id, "retraining.json")
    assert told == json.loads(json.dumps(outcome(year, "april")))
    run = tracking.run_record(run_id)
    assert (run["status"], run["tags"]["retrain.way"], run["tags"]["retrain.is_promoted"]) == (
        "FINISHED", "continue", "true",
    )  # fmt: skip
    assert "forgetting.old.rtd_loss.after" in run["metrics"]


def test_the_lock_is_free_after_every_run_whichever_way_it_ended(year: Place) -> None:
    assert year.lock().acquire() is None
    year.lock().release()


def test_a_run_that_dies_leaves_the_champion_and_keeps_the_lock_until_it_expires(
    year: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import lifecycle

    def die(*_: Any) -> None:
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr(lifecycle, "pretrain", die)
    (year.text / "december.txt").write_text(sentences(5, 100))
    with pytest.raises(RuntimeError, match="the machine is gone"):
        year.walk("december")
    (year.text / "december.txt").unlink()
    assert tracking.aliases(NAME)["champion"] == "2"
    held = year.lock().acquire()
    assert held is not None and held.owner == "RetrainFlow/december"
    with pytest.raises(LockError, match="now held by another/run"):
        year.lock("RetrainFlow/december").release()
        year.lock().acquire()
        retrain.part(
            lambda plan: None, {"way": "continue", "pathspec": "RetrainFlow/december", "retrain": _config(year)}
        )
    year.lock().release()


def test_a_server_that_is_away_keeps_the_lock_for_the_next_attempt_and_a_refusal_frees_it(year: Place) -> None:
    def fail(plan: dict[str, Any], error: Exception) -> None:
        raise error

    plan = {"way": "continue", "pathspec": "RetrainFlow/december", "retrain": _config(year)}
    for away in (StoreError("S3 does not answer"), TrackingError("MLflow does not answer"), LockError("S3 is away")):
        with pytest.raises(type(away)):
            retrain.part(fail, plan, away)
        held = year.lock().acquire()
        assert held is not None and held.owner == "RetrainFlow/december"
    with pytest.raises(DataError):
        retrain.part(fail, plan, DataError("no text"))
    assert year.lock().acquire() is None
    year.lock().release()


def test_start_renews_the_lock_while_it_looks_at_the_text(year: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: Any, **__: Any) -> None:
        time.sleep(0.7)
        held = year.lock().acquire()
        assert held is not None and held.owner == "RetrainFlow/long"
        raise DataError("garbage, after a while")

    def short_lived(config: Any, *, owner: str, **_: Any) -> Lock:
        return Lock(Store(config.store), retrain.LOCK_NAME, owner=owner, lifetime_seconds=0.5)

    monkeypatch.setattr(retrain, "_lock_of", short_lived)
    monkeypatch.setattr(retrain, "_plan", look)
    with pytest.raises(DataError, match="after a while"):
        retrain.begin_retrain(year.given, flow="RetrainFlow", run_id="long")
    assert year.lock().acquire() is None
    year.lock().release()


def _config(place: Place) -> dict[str, Any]:
    from steps.config import resolve_retrain

    return resolve_retrain(place.given).to_dict()


def test_step_functions_graph_goes_through_every_step_and_trains_nothing(
    year: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deployment

    monkeypatch.setattr(deployment, "ON_STEP_FUNCTIONS", True)
    walked = year.walk("on aws", load_flow("retrain_flow", "on_step_functions"), min_new_tokens=10**6)
    assert walked.steps == [
        "start", "choose", "list_texts", "tokenize", "gather_tokens", "list_candidates", "score_auxiliary",
        "freeze_auxiliary", "pretrain", "finetune", "gather_scores", "register", "end",
    ]  # fmt: skip
    assert walked.data.outcome["way"] == "nothing" and "min_new_tokens" in walked.data.outcome["reason"]


# No champion comes of it


@pytest.fixture(scope="module")
def unstated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The licence of the text is not stated, so that the model that is trained gets no alias."""
    place = Place(tmp_path_factory.mktemp("unstated"))
    place.given |= {"corpus_licence": "", "num_steps": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        place.months["too little"] = place.walk("too little", min_new_tokens=10**6)
        place.months["no batch"] = place.walk("no batch", batch_size=10**4)
        place.months["none held out"] = place.walk("none held out", heldout_fraction=1e-9)
        place.months["first"] = place.walk("first")
        place.months["second"] = place.walk("second")
        yield place


def test_a_first_model_is_not_trained_on_less_text_than_min_new_tokens(unstated: Place) -> None:
    found, walked = outcome(unstated, "too little"), unstated.months["too little"]
    assert walked.steps == ["start", "choose", "end"]
    assert found["way"] == "nothing" and found["champion_before"] is None
    assert "new tokens, fewer than 1,000,000 (min_new_tokens)" in found["reason"]


@pytest.mark.parametrize(
    ("month", "reason"),
    [
        ("no batch", r"new tokens to train on, fewer than the 300,000 of one batch \(batch_size, sequence_length\)"),
        (
            "none held out",
            r"of .* new tokens 0 are held out \(heldout_fraction 1e-09\), fewer than the 30 of one sequence",
        ),
    ],
)
def test_text_without_a_batch_or_a_held_out_sequence_waits_for_more(unstated: Place, month: str, reason: str) -> None:
    found, walked = outcome(unstated, month), unstated.months[month]
    assert walked.steps == ["start", "choose", "end"] and found["way"] == "nothing"
    assert re.search(reason, found["reason"])


def test_a_first_model_that_did_not_become_champion_is_not_trained_again_on_the_same_text(unstated: Place) -> None:
    first, found, walked = outcome(unstated, "first"), outcome(unstated, "second"), unstated.months["second"]
    assert (first["way"], first["is_promoted"]) == ("scratch", False)
    assert walked.steps == ["start", "choose", "end"]
    assert found["way"] == "nothing" and found["files"] == {
        "new": 2, "changed": 0, "duplicates": 0, "kept": 0, "gone": 0,
    }  # fmt: skip
    assert found["reason"].startswith(
        "version 1 was trained on this very text with these parameters and is not champion (no alias: gate licence: "
    )
    assert found["reason"].endswith(
        "promote it (`fast-electra promote models:/fast-electra/1`), mend what failed, or give other text or parameters"
    )
    assert unstated.lock().acquire() is None
    unstated.lock().release()


def test_other_parameters_text_or_auxiliary_are_a_reason_to_train_a_first_model_anew(unstated: Place) -> None:
    from steps.config import resolve_retrain

    tracking.connect(unstated.uri)
    assert "retrain.generation" not in tracking.model_version_info(f"models:/{NAME}/1")["tags"]

    def way(**changes: Any) -> str:
        config = resolve_retrain({**unstated.given, **changes})
        return str(retrain._plan(config, flow="RetrainFlow", run_id="asked")["way"])

    assert way() == "nothing"
    assert way(num_steps=20) == "scratch"
    (unstated.text / "february.txt").write_text(sentences(1, 20))
    assert way() == "scratch"
    (unstated.text / "february.txt").unlink()
    weights = unstated.auxiliary / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes((unstated.foreign_auxiliary / "model.safetensors").read_bytes())
    assert way() == "scratch"  # what lies at the same address has changed
    weights.write_bytes(kept)
    assert way() == "nothing"


# Before anything costs


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"replay_fraction": 1.5}, ConfigError, "replay_fraction must be a multiple of 0.0001"),
        ({"num_layers": 3}, ConfigError, "num_layers is 2 in it and 3 here"),
        ({"corpus": "nowhere"}, DataError, "corpus 'nowhere': there is no 'nowhere'"),
        ({"store": "elsewhere"}, DataError, "nothing of the text that the champion fast-electra 2 has seen is in the"),
    ],
)
def test_what_would_not_work_later_is_said_in_start_and_the_lock_is_free(
    year: Place, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    (year.text / "late.txt").write_text(sentences(6, 60))
    with pytest.raises(error, match=message):
        year.walk("bad", **changes)
    (year.text / "late.txt").unlink()
    assert year.lock().acquire() is None
    year.lock().release()


def test_a_champion_that_does_not_say_what_it_has_seen_is_not_continued(
    year: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import retrain_news

    monkeypatch.setattr(retrain_news, "read_record", lambda version: None)
    with pytest.raises(DataError, match="does not say which files it has seen"):
        year.walk("unknown")


def test_no_secret_of_the_environment_reaches_database_or_artifacts(
    year: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAST_ELECTRA_WEBHOOK", "https://hooks.example/T0KEN")
    year.walk("with a webhook")
    with contextlib.closing(sqlite3.connect(str(year.folder / "mlflow.db"))) as database:
        dump = "\n".join(database.iterdump())
    assert "T0KEN" not in dump
    files = [path for path in (year.folder / "mlartifacts").rglob("*") if path.is_file()]
    assert files and not any(b"T0KEN" in path.read_bytes() for path in files)


def test_the_lineage_of_a_continued_version_is_whole_though_its_corpus_has_grown(year: Place) -> None:
    from steps.lineage_tree import differences, tree_of

    tree = tree_of(f"models:/{NAME}/2")
    verdicts = {check.what: check.verdict for node in tree.everything() for check in node.checks}
    assert (year.text / "october.txt").is_file()
    assert verdicts["file april.txt"] == verdicts["initial_model.digest"] == "ok"
    assert [check.what for check in differences(tree) if not check.what.startswith("code")] == []


def test_a_hook_without_metaflows_metadata_asks_mlflow_what_came_of_the_run(
    year: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from webhook_receiver import Receiver

    from steps import retrain_hook

    receiver = Receiver()
    monkeypatch.setenv("FAST_ELECTRA_WEBHOOK", receiver.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", year.uri)
    for month in ("april", "may", "of another place"):
        monkeypatch.setenv("RUN_PATHSPEC", f"RetrainFlow/{month}")
        retrain_hook.tell_success(None)
    receiver.close()
    told = [content["outcome"] for _, _, content in receiver.got]
    assert told == [outcome(year, "april"), None, None]
    assert receiver.got[0][2]["text"] == outcome(year, "april")["words"]
