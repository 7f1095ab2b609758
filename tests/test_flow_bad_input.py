"""What cannot work is refused in `start`, with a message for people, before anything is made."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, Workspace, new_database, write_text
from toys import save_auxiliary

from fast_electra_core.errors import AuxiliaryError, ConfigError, DataError, TrackingError
from steps import planning


class Place:
    """A folder with text, an auxiliary and an MLflow database, where the flows' first steps run in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        new_database(folder)
        text = write_text(folder / "text.txt")
        save_auxiliary(folder / "auxiliary", text.read_text().split("\n\n"))

    def _given(self, given: dict[str, Any]) -> dict[str, Any]:
        standard = {"preset": "tiny", "corpus": "text.txt", "heldout_fraction": 0.1, "store": "store"}
        return {**standard, "tracking_uri": "sqlite:///mlflow.db", **given}

    def begin_pretrain(self, **given: Any) -> dict[str, Any]:
        return planning.begin_pretrain(
            self._given({"auxiliary": "auxiliary", **given}), flow="PretrainFlow", run_id="1"
        )

    def begin_auxiliary(self, **given: Any) -> dict[str, Any]:
        return planning.begin_auxiliary(self._given(given), flow="AuxiliaryFlow", run_id="1")

    def runs(self) -> list[Any]:
        """What MLflow has been told of."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.folder}/mlflow.db"
        client = MlflowClient(uri, registry_uri=uri)
        return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(made: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The place, as the current folder; nothing may be left in MLflow by a run that was refused."""
    monkeypatch.chdir(made.folder)
    before = len(made.runs())
    yield made
    assert len(made.runs()) == before


@pytest.mark.parametrize(
    "given, message",
    [
        ({"preset": "demmo"}, "preset must be one of tiny, demo, .*; got 'demmo'. Did you mean 'demo'"),
        ({"schedule": "exponental"}, "schedule must be one of .*; got 'exponental'. Did you mean 'exponential'"),
        ({"tasks": "rte,colla"}, "tasks must be one of .*; got 'colla'. Did you mean 'cola'"),
        ({"corruption": "ahead"}, "corruption must be one of online, offline; got 'ahead'"),
        (
            {"corruption": "offline", "method": "electra"},
            "corruption must be online with method electra, got offline: its generator is trained alongside",
        ),
        ({"num_nodes": 0}, r"num_nodes must be in \[1, 8\], got 0"),
        ({"num_nodes": 3, "processes_per_node": 3}, r"num_nodes must be in \[1, 2\], got 3"),  # eight rows
        ({"processes_per_node": 9}, r"processes_per_node must be in \[1, 8\], got 9"),
        ({"method": "fast-electra"}, "method must be one of .*; got 'fast-electra'. Did you mean 'fast_electra'"),
        (
            {"architecture": "bert"},
            "architecture must be one of electra, modernbert; got 'bert'. Did you mean 'modernbert'",
        ),
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16; got 'fp16'"),
        ({"on_bad_text": "ignore"}, "on_bad_text must be one of error, replace, skip; got 'ignore'"),
        ({"temperature_start": 0.0}, "temperature_start must be > 0, got 0.0"),
        ({"temperature_decay": -0.1}, "temperature_decay must be > 0, got -0.1"),
        ({"temperature_end": float("nan")}, "temperature_end must be a finite number, got nan"),
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"mask_fraction": 1.0}, r"mask_fraction must be in \(0, 1\), got 1.0"),
        ({"heldout_fraction": 0.6}, r"heldout_fraction must be in \(0, 0.5\], got 0.6"),
        ({"sequence_length": 7}, "sequence_length must be >= 8, got 7"),
        ({"micro_batch_size": 3}, r"batch_size must be divisible by micro_batch_size \(3\), got 8"),
        ({"hidden_size": 33}, r"hidden_size must be a multiple of num_heads \(2\), got 33"),
        ({"auxiliary": " , "}, "auxiliary must name at least one candidate"),
        ({"tasks": ","}, "tasks must name at least one of"),
        ({"corpus": " "}, "corpus must not be empty"),
        ({"seed": -1}, r"seed must be in \[0, "),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_with_what_is_allowed(
    given: dict[str, Any], message: str, place: Place, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        place.begin_pretrain(store=str(tmp_path / "store"), **given)
    assert not (tmp_path / "store").exists()


def test_a_corpus_that_is_missing_is_said_with_the_nearest_name(place: Place) -> None:
    with pytest.raises(DataError, match=r"there is no 'test\.txt' in .*Did you mean 'text\.txt'\?"):
        place.begin_pretrain(corpus="test.txt")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.txt", b"", "empty|no bytes|0 bytes"),
        ("text.pdf", b"%PDF", r"\.txt, \.jsonl"),
    ],
)
def test_a_corpus_without_text_is_refused(
    name: str, content: bytes, message: str, place: Place, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        place.begin_pretrain(corpus=str(tmp_path / name))


def test_the_folder_in_which_mlflow_keeps_its_artifacts_is_no_corpus(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"holds the folder of MLflow's artifacts '{place.folder}/mlartifacts'"):
        place.begin_auxiliary(corpus=".", store=str(tmp_path))


def test_a_tokenizer_is_not_trained_on_bytes_that_are_not_utf8(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"kara moden\n\nkara \xff moden")
    with pytest.raises(DataError, match=r"latin\.txt.* 17\b.*--on_bad_text replace or --on_bad_text skip"):
        place.begin_auxiliary(corpus=str(path))


def test_files_that_are_no_text_are_said_to_be_left_out(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in {"a.txt": b"kara \xff", "b.txt": b"", "paper.pdf": b"%PDF", "notes.md": b"kara"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt"):
        place.begin_auxiliary(corpus=str(tmp_path))
    assert f"3 of the files in {tmp_path} are left out: empty, or of a kind that is not known; known a" in caplog.text


def test_a_tokenizer_is_not_trained_on_documents_without_words(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n\t\n\n\x00")
    with pytest.raises(DataError):
        place.begin_auxiliary(corpus=str(path))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "RTE"),
        ({"RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"}, r"dev\.tsv"),
        (
            {
                "RTE/train.tsv": "index\tsentence1\tlabel\n0\ta\tentailment\n",
                "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
            },
            "sentence2",
        ),
    ],
)
def test_glue_data_that_lacks_a_task_a_file_or_a_column_is_refused_with_its_name(
    files: dict[str, str], message: str, place: Place, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        place.begin_pretrain(glue=str(tmp_path), tasks="rte")


def test_an_auxiliary_that_is_not_registered_is_said_with_what_makes_one(place: Place) -> None:
    with pytest.raises(TrackingError, match=r"no registered model 'fast-electra-auxiliary'.*flows/auxiliary_flow\.py"):
        place.begin_pretrain(auxiliary="models:/fast-electra-auxiliary@champion")


def test_one_bad_candidate_among_two_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(AuxiliaryError, match=r"has no readable config\.json"):
        place.begin_pretrain(auxiliary=f"auxiliary,{tmp_path}")


def test_a_store_that_cannot_be_written_is_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"store 'text\.txt/store' cannot be written: .* Give another --store"):
        place.begin_pretrain(store="text.txt/store")


@pytest.fixture(params=["refuses", "accepts and says nothing"])
def silent_server(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param != "refuses":
            listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_tracking_server_that_does_not_answer_is_noticed_before_anything_is_made(
    silent_server: str, place: Place, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=re.escape(f"no MLflow server answers at {silent_server}")):
        place.begin_pretrain(tracking_uri=silent_server, store=str(tmp_path / "store"))
    assert time.monotonic() - started < 30
    assert list((tmp_path / "store").iterdir()) == []


def test_good_input_is_accepted(made: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)
    before = len(made.runs())
    plan = made.begin_pretrain(tasks="rte")
    assert len(made.runs()) == before + 1
    assert [candidate["address"] for candidate in plan["candidates"]] == ["auxiliary"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed, message",
    [
        (("--schedule", "exponental"), "schedule must be one of .*; got 'exponental'. Did you mean 'exponential'"),
        (("--corpus", "test.txt"), "there is no 'test.txt' in .* Did you mean 'text.txt'"),
    ],
)
def test_the_user_of_the_flow_sees_the_message_and_no_stack(
    changed: tuple[str, str], message: str, place: Place, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    auxiliary = ("--auxiliary", str(place.folder / "auxiliary"))
    output = workspace.run("pretrain_flow.py", "run", *TEXT, *auxiliary, *changed, succeeds=False)
    assert re.search(message, output), output
    assert "Traceback" not in output
    assert 'File "' not in output
    assert "start" in output
    assert "tokenize" not in output.partition("Workflow starting")[2]
