"""The tasks of fine-tuning: where they are read from, and what many runs of one come to."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import DataError
from fast_electra_core.glue import Example, summarise_task
from steps.finetune import averages, check_tasks, load_task, summarise


def config_of(**changes: Any) -> dict[str, Any]:
    return PretrainConfig(**({"tasks": "sst2"} | changes)).to_dict()


def write_sst2(folder: Path) -> None:
    (folder / "SST-2").mkdir(parents=True)
    for name in ("train", "dev"):
        (folder / f"SST-2/{name}.tsv").write_text("sentence\tlabel\na good code\t1\na bad code\t0\n")


def test_a_folder_is_checked_and_loaded(tmp_path: Path) -> None:
    write_sst2(tmp_path)
    report = check_tasks(config_of(glue=str(tmp_path)))
    assert report["sst2"] == summarise_task(load_task(str(tmp_path), "sst2"))
    with pytest.raises(DataError, match="has no folder CoLA"):
        check_tasks(config_of(glue=str(tmp_path), tasks="sst2,cola"))


def test_bad_rows_are_skipped_if_bad_text_is(tmp_path: Path) -> None:
    write_sst2(tmp_path)
    with (tmp_path / "SST-2/train.tsv").open("a") as file:
        file.write("broken\n")
    with pytest.raises(DataError, match="line 4: 2 tab-separated columns expected"):
        check_tasks(config_of(glue=str(tmp_path)))
    assert check_tasks(config_of(glue=str(tmp_path), on_bad_text="skip"))["sst2"]["num_skipped"] == 1


def test_the_hub_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*asked: str) -> None:
        raise ConnectionError(f"asked for {asked}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"asked for \('nyu-mll/glue', 'rte'\)"):
        load_task("hub:nyu-mll/glue", "rte")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of an S3 server of our own, with bucket `glue-data`; the environment points at it."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("FAST_ELECTRA_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        deadline = time.monotonic() + 60
        while not is_listening(port):
            assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.2)
        client = boto3.client("s3")
        client.create_bucket(Bucket="glue-data")
        yield client
    finally:
        server.terminate()
        server.wait()
        patch.undo()


def test_a_task_is_read_from_s3_as_it_is_now(s3: Any) -> None:
    text = "sentence\tlabel\na good code\t1\n"
    for name in ("train", "dev"):
        s3.put_object(Bucket="glue-data", Key=f"sets/glue/SST-2/{name}.tsv", Body=text.encode())
    assert load_task("s3://glue-data/sets/glue", "sst2").train == [Example("a good code", None, 1)]
    s3.put_object(Bucket="glue-data", Key="sets/glue/SST-2/train.tsv", Body=text.replace("1", "0").encode())
    assert load_task("s3://glue-data/sets/glue/", "sst2").train == [Example("a good code", None, 0)]
    assert check_tasks(config_of(glue="s3://glue-data/sets/glue"))["sst2"]["train"] == 1


def test_what_is_missing_in_s3_is_said(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="glue-data", Key="half/RTE/train.tsv", Body=b"sentence1\tsentence2\tlabel\n")
    with pytest.raises(DataError, match="s3://glue-data/half has no folder CoLA for task cola; folders there: RTE"):
        load_task("s3://glue-data/half", "cola")
    with pytest.raises(DataError, match=r"task rte needs dev.tsv in .*; files there: train.tsv"):
        load_task("s3://glue-data/half", "rte", cache=tmp_path)
    with pytest.raises(DataError, match="s3://no-such-bucket cannot be read"):
        load_task("s3://no-such-bucket", "cola")
    with pytest.raises(DataError, match="glue must be s3://BUCKET/PREFIX, got 's3://'"):
        load_task("s3://", "cola")


def result_of(score: float, *, untrained: bool, task: str = "rte", degenerate: bool = False) -> dict[str, Any]:
    majority = {"accuracy": 0.5}
    scores = {"accuracy": score}
    kind = {"untrained": untrained, "degenerate": degenerate}
    return {"task": task, "scores": scores, "majority": majority, **kind}


def test_the_summary_by_hand() -> None:
    trained, untrained = [0.6, 0.7, 0.8], [0.5, 0.5, 0.53]
    results = [result_of(value, untrained=False) for value in trained]
    results += [result_of(value, untrained=True, degenerate=value == 0.5) for value in untrained]
    (row,) = summarise(results)
    assert (row["task"], row["metric"], row["is_main"], row["majority"]) == ("rte", "accuracy", True, 0.5)
    best = {"n": 3, "median": 0.7, "mean": pytest.approx(0.7), "std": pytest.approx(0.1), "best": 0.8}
    assert row["pretrained"] == {**best, "num_degenerate": 0}
    assert row["untrained"]["num_degenerate"] == 2
    expected = ttest_ind(trained, untrained, equal_var=False).confidence_interval(0.95)
    assert (row["margin_low"], row["margin_high"]) == pytest.approx((expected.low, expected.high))
    assert row["margin"] == pytest.approx(0.19)
    assert row["is_outside_noise"] is False  # 0.19 ± 0.24: three seeds that far apart show nothing


def test_a_margin_outside_the_noise_on_either_side_is_called_so() -> None:
    high, low = [0.80, 0.81, 0.82], [0.50, 0.52, 0.51]
    for trained, untrained in ((high, low), (low, high)):
        results = [result_of(value, untrained=False) for value in trained]
        results += [result_of(value, untrained=True) for value in untrained]
        assert summarise(results)[0]["is_outside_noise"] is True


def test_one_seed_shows_no_margin_and_no_spread() -> None:
    (row,) = summarise([result_of(0.9, untrained=False), result_of(0.5, untrained=True)])
    assert row["margin"] is row["is_outside_noise"] is row["pretrained"]["std"] is None
    (row,) = summarise([result_of(0.9, untrained=False)])
    assert row["untrained"] is None


def test_seeds_that_all_score_the_same_leave_a_point() -> None:
    results = [result_of(0.7, untrained=False)] * 2 + [result_of(0.7, untrained=True)] * 2
    (row,) = summarise(results)
    assert (row["margin_low"], row["margin_high"], row["is_outside_noise"]) == (0.0, 0.0, False)


def test_averages_say_over_which_tasks() -> None:
    results = [result_of(value, untrained=False) for value in (0.6, 0.8)]
    results += [result_of(0.2, untrained=False, task="wnli"), result_of(0.1, untrained=True)]
    found = averages(results)
    assert found["electra"] == {"value": pytest.approx(0.7), "tasks": ["rte"], "is_complete": False}
    assert found["leaderboard"]["value"] == pytest.approx(0.45)
    assert averages(results, untrained=True)["electra"]["value"] == pytest.approx(0.1)
    assert averages([]) == {}
