"""The tasks of fine-tuning: where they are read from, and what is said of those that cannot be."""

from pathlib import Path
from typing import Any

import pytest
from conftest import HUB_HTTP_ERROR

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import DataError
from fast_electra_core.glue import Example, summarise_task
from steps.tasks import check_tasks, load_task


def config_of(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**({"tasks": "sst2"} | changes))


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


def test_bad_rows_are_skipped_if_bad_text_is_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sst2(tmp_path)
    with (tmp_path / "SST-2/train.tsv").open("a") as file:
        file.write("broken\n")
    with pytest.raises(DataError, match="line 4: 2 tab-separated columns expected"):
        check_tasks(config_of(glue=str(tmp_path)))
    assert check_tasks(config_of(glue=str(tmp_path), on_bad_text="skip"))["sst2"]["num_skipped"] == 1
    assert caplog.messages == ["task sst2: broken rows left out: 1"]


@pytest.mark.parametrize("error", [ConnectionError, HUB_HTTP_ERROR])
def test_the_hub_is_asked_by_its_name(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*asked: str) -> None:
        raise error(f"asked for {asked}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"asked for \('nyu-mll/glue', 'rte'\)"):
        load_task("hub:nyu-mll/glue", "rte")


def test_a_task_is_read_from_s3_as_it_is_now(s3: Any) -> None:
    text = "sentence\tlabel\na good code\t1\n"
    for name in ("train", "dev"):
        s3.put_object(Bucket="bucket", Key=f"sets/glue/SST-2/{name}.tsv", Body=text.encode())
    assert load_task("s3://bucket/sets/glue", "sst2").train == [Example("a good code", None, 1)]
    s3.put_object(Bucket="bucket", Key="sets/glue/SST-2/train.tsv", Body=text.replace("1", "0").encode())
    assert load_task("s3://bucket/sets/glue/", "sst2").train == [Example("a good code", None, 0)]
    assert check_tasks(config_of(glue="s3://bucket/sets/glue"))["sst2"]["train"] == 1


def test_what_is_missing_in_s3_is_said(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="half/RTE/train.tsv", Body=b"sentence1\tsentence2\tlabel\n")
    with pytest.raises(DataError, match="half has no folder CoLA or cola for task cola; folders there: RTE"):
        load_task("s3://bucket/half", "cola")
    with pytest.raises(DataError, match=r"task rte needs dev.tsv in .*; files there: train.tsv"):
        load_task("s3://bucket/half", "rte")
    with pytest.raises(DataError, match="s3://no-such-bucket cannot be read"):
        load_task("s3://no-such-bucket", "cola")
    with pytest.raises(DataError, match="glue must be s3://BUCKET/PREFIX, got 's3://'"):
        load_task("s3://", "cola")


def test_what_datasets_saved_is_read_from_s3_with_its_folders(s3: Any, tmp_path: Path) -> None:
    import datasets

    rows = [{"sentence": "a good code", "label": 1, "idx": 0}]
    splits = {name: datasets.Dataset.from_list(rows) for name in ("train", "validation")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved").rglob("*"):
        if path.is_file():
            key = f"arrow/sst2/{path.relative_to(tmp_path / 'saved').as_posix()}"
            s3.put_object(Bucket="bucket", Key=key, Body=path.read_bytes())
    found = load_task("s3://bucket/arrow", "sst2")
    assert found.train == [Example("a good code", None, 1)]


def test_an_object_that_leads_out_of_its_folder_is_refused(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="glue/RTE/../../escaped", Body=b"")
    with pytest.raises(DataError, match=r"escaped' leads out of its folder and is refused"):
        load_task("s3://bucket/glue", "rte")
    assert not list(tmp_path.rglob("escaped"))
