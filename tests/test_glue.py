"""Readers of the classic GLUE files and of the hub's: every quirk of the files, every complaint."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fast_electra_core.errors import ConfigError, DataError
from fast_electra_core.glue import SPECS, TASK_NAMES, Example, summarise_task
from fast_electra_core.glue_files import check_task_folder, read_hub_task, read_task

STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"


def write(root: Path, name: str, text: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    write(tmp_path, "SST-2/train.tsv", "sentence\tlabel\ngood film \t1\nbad film \t0\n")
    write(tmp_path, "SST-2/dev.tsv", "sentence\tlabel\na film \t1\n")
    return tmp_path


def test_the_nine_tasks_can_be_trained_on_and_the_diagnostic_set_cannot() -> None:
    assert TASK_NAMES == ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    assert SPECS["ax"].train_file is None


def test_cola_has_no_header_and_the_sentence_in_the_fourth_column(tmp_path: Path) -> None:
    write(tmp_path, "CoLA/train.tsv", "gj04\t1\t\tBill sank.\nbc01\t0\t*\tSank Bill.\n")
    write(tmp_path, "CoLA/dev.tsv", "gj04\t1\t\tIt rolls.")
    data = read_task(tmp_path, "cola")
    assert data.train == [Example("Bill sank.", None, 1), Example("Sank Bill.", None, 0)]
    assert data.dev == {"dev": [Example("It rolls.", None, 1)]}


def test_electras_names_of_the_folders_are_known_too(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        write(tmp_path, f"sst/{name}.tsv", "sentence\tlabel\ngood\t1\n")
        write(tmp_path, f"sts/{name}.tsv", STSB_HEADER + "0\tg\tf\t2012\t1\tn\tn\ta\tb\t3.800\n")
    assert read_task(tmp_path, "sst2").train == [Example("good", None, 1)]
    assert read_task(tmp_path, "stsb").train == [Example("a", "b", 3.8)]


def test_mrpc_may_begin_with_a_byte_order_mark_and_quotes_are_text(tmp_path: Path) -> None:
    text = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\t" We won , he said\the "won"\n'
    write(tmp_path, "MRPC/train.tsv", text)
    write(tmp_path, "MRPC/dev.tsv", text)
    assert read_task(tmp_path, "mrpc").train == [Example('" We won , he said', 'he "won"', 1)]


def test_carriage_returns_and_a_missing_last_newline_leave_no_trace(tmp_path: Path) -> None:
    write(tmp_path, "RTE/train.tsv", "index\tsentence1\tsentence2\tlabel\r\n0\ta\tb\tentailment\r\n")
    write(tmp_path, "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\r\n0\tc\td\tnot_entailment")
    data = read_task(tmp_path, "rte")
    assert data.train == [Example("a", "b", 0)]
    assert data.dev["dev"] == [Example("c", "d", 1)]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    write(tmp_path, "SST-2/train.tsv", "sentence\tlabel\none\u2028two\x85three\t1\n")
    write(tmp_path, "SST-2/dev.tsv", "sentence\tlabel\nx\t0\n")
    assert read_task(tmp_path, "sst2").train == [Example("one\u2028two\x85three", None, 1)]


def test_mnli_columns_are_found_by_name_in_the_long_and_the_short_header(tmp_path: Path) -> None:
    short = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tneutral\tcontradiction\n"
    long = "index\tgenre\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tg\tp\th\tneutral\t-\tneutral\n"
    write(tmp_path, "MNLI/train.tsv", short)
    write(tmp_path, "MNLI/dev_matched.tsv", long)
    data = read_task(tmp_path, "mnli")
    assert data.train == [Example("p", "h", 2)]
    assert data.dev == {"matched": [Example("p", "h", 1)]}


def test_mismatched_is_read_where_it_is_there(tmp_path: Path) -> None:
    text = "sentence1\tsentence2\tgold_label\np\th\tentailment\n"
    for name in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path, f"MNLI/{name}.tsv", text)
    assert list(read_task(tmp_path, "mnli").dev) == ["matched", "mismatched"]


def test_stsb_labels_are_numbers(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        write(tmp_path, f"STS-B/{name}.tsv", STSB_HEADER + "0\tg\tf\t2012\t1\tn\tn\ta\tb\t3.800\n")
    assert read_task(tmp_path, "stsb").train == [Example("a", "b", 3.8)]


@pytest.mark.parametrize("score", ["5.1", "-0.1", "nan", "high", ""])
def test_a_similarity_outside_its_range_is_refused(tmp_path: Path, score: str) -> None:
    write(tmp_path, "STS-B/train.tsv", STSB_HEADER + f"0\tg\tf\t2012\t1\tn\tn\ta\tb\t{score}\n")
    write(tmp_path, "STS-B/dev.tsv", STSB_HEADER)
    with pytest.raises(DataError, match=r"train.tsv, line 2: score must be a number in \[0, 5\], got"):
        read_task(tmp_path, "stsb")


@pytest.mark.parametrize(
    ("task", "folder", "header", "row", "expected"),
    [
        ("qqp", "QQP", "id\tquestion1\tquestion2\tis_duplicate", "1\tq\tr\t1", Example("q", "r", 1)),
        ("qnli", "QNLI", "index\tquestion\tsentence\tlabel", "1\tq\ts\tnot_entailment", Example("q", "s", 1)),
        ("wnli", "WNLI", "index\tsentence1\tsentence2\tlabel", "1\ta\tb\t0", Example("a", "b", 0)),
    ],
)
def test_other_pairs(tmp_path: Path, task: str, folder: str, header: str, row: str, expected: Example) -> None:
    for name in ("train", "dev"):
        write(tmp_path, f"{folder}/{name}.tsv", f"{header}\n{row}\n")
    assert read_task(tmp_path, task).train == [expected]


def test_a_row_of_a_wrong_width_names_file_and_line(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", "sentence\tlabel\ngood\t1\nbroken\n")
    with pytest.raises(DataError, match=r"train.tsv, line 3: 2 tab-separated columns expected .*, got 1"):
        read_task(sst2, "sst2")
    write(sst2, "SST-2/train.tsv", "sentence\tlabel\ngood\t1\nhalf\t1\tof it\n")
    with pytest.raises(DataError, match=r"train.tsv, line 3: 2 tab-separated columns expected .*, got 3"):
        read_task(sst2, "sst2")


def test_an_unknown_label_names_file_line_and_the_labels_there_are(sst2: Path) -> None:
    write(sst2, "SST-2/dev.tsv", "sentence\tlabel\ngood\tpositive\n")
    with pytest.raises(DataError, match=r"dev.tsv, line 2: label must be one of 0, 1, got 'positive'"):
        read_task(sst2, "sst2")


def test_the_first_line_of_cola_is_line_1(tmp_path: Path) -> None:
    write(tmp_path, "CoLA/train.tsv", "gj04\t2\t\tBill sank.\n")
    write(tmp_path, "CoLA/dev.tsv", "gj04\t1\t\tBill sank.\n")
    with pytest.raises(DataError, match=r"train.tsv, line 1: label must be one of 0, 1, got '2'"):
        read_task(tmp_path, "cola")


def test_broken_rows_can_be_skipped_and_are_counted(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", "sentence\tlabel\ngood\t1\nbroken\nworse\tx\nbad\t0\n")
    data = read_task(sst2, "sst2", on_bad_row="skip")
    assert [example.text_a for example in data.train] == ["good", "bad"]
    assert data.num_skipped == 2


def test_bad_row_choices_are_checked(sst2: Path) -> None:
    with pytest.raises(ConfigError, match="on_bad_row must be one of error, skip; got 'replace'"):
        read_task(sst2, "sst2", on_bad_row="replace")


def test_a_missing_column_names_those_there_are(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", "text\tlabel\ngood\t1\n")
    with pytest.raises(DataError, match=r"train.tsv has no column sentence; columns there: label, text"):
        read_task(sst2, "sst2")


def test_a_missing_folder_names_those_there_are(sst2: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder RTE or rte for task rte; folders there: SST-2"):
        read_task(sst2, "rte")


@pytest.mark.parametrize("task", ["sst2", "cola"])
def test_a_tasks_own_folder_leads_to_the_one_above(task: str, sst2: Path) -> None:
    """Also where another task is looked for first, as cola is by default."""
    with pytest.raises(DataError, match=rf"If it is a task's own folder, give the one above: {sst2}$"):
        read_task(sst2 / "SST-2", task)


def test_where_there_is_no_folder_all_that_glue_takes_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sampel is not a folder; .*, an s3:// prefix, hub:NAME, or sample$"):
        read_task(tmp_path / "sampel", "sst2")


def test_a_missing_file_names_those_there_are(sst2: Path) -> None:
    (sst2 / "SST-2/dev.tsv").unlink()
    with pytest.raises(DataError, match=r"task sst2 needs dev.tsv in .*SST-2; files there: train.tsv"):
        read_task(sst2, "sst2")


def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_task(tmp_path / "nowhere", "rte")


@pytest.mark.parametrize("text", ["sentence\tlabel\n", "sentence\tlabel"])
def test_a_file_of_no_examples_is_refused(sst2: Path, text: str) -> None:
    write(sst2, "SST-2/train.tsv", text)
    with pytest.raises(DataError, match=r"train.tsv holds no examples"):
        read_task(sst2, "sst2")


def test_an_empty_file_lacks_its_columns(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", "")
    with pytest.raises(DataError, match=r"train.tsv has no column sentence, label"):
        read_task(sst2, "sst2")


def test_bytes_that_are_not_utf8_name_file_line_and_byte(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"train.tsv, line 2: not UTF-8 \(byte 18\)"):
        read_task(sst2, "sst2")
    write(sst2, "SST-2/train.tsv", codecs.BOM_UTF8 + b"caf\xe9\tlabel\n")
    with pytest.raises(DataError, match=r"train.tsv, line 1: not UTF-8 \(byte 6\)"):
        read_task(sst2, "sst2")


def test_rows_that_are_not_utf8_can_be_skipped_and_are_counted(sst2: Path, tmp_path: Path) -> None:
    write(sst2, "SST-2/train.tsv", b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\nbad\t0\n")
    data = read_task(sst2, "sst2", on_bad_row="skip")
    assert ([each.text_a for each in data.train], data.num_skipped) == (["fine", "bad"], 1)
    write_tickets(tmp_path, dev="dev.jsonl")
    write(tmp_path, "tickets/train.csv", b'body,team\n"two\nlin\xe9s",billing\ngood,technical\n')
    write(tmp_path, "tickets/dev.jsonl", b'{"body": "caf\xe9", "team": "billing"}\n{"body": "x", "team": "billing"}\n')
    data = read_task(tmp_path, "tickets", on_bad_row="skip")
    assert ([each.text_a for each in data.train], [each.text_a for each in data.dev["dev"]]) == (["good"], ["x"])
    assert data.num_skipped == 2
    with pytest.raises(DataError, match=r"train.csv, line 2: not UTF-8 \(byte 18\)"):
        read_task(tmp_path, "tickets")


def test_a_header_that_is_not_utf8_is_never_skipped(sst2: Path) -> None:
    write(sst2, "SST-2/train.tsv", b"sent\xe9nce\tlabel\nfine\t1\n")
    with pytest.raises(DataError, match=r"train.tsv, line 1: not UTF-8 \(byte 4\)"):
        read_task(sst2, "sst2", on_bad_row="skip")


def test_an_unknown_task_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"tasks must be of .*; got 'sst-2'. Did you mean 'sst2'\?"):
        read_task(Path(), "sst-2")


def test_checking_counts_every_task(sst2: Path) -> None:
    report = check_task_folder(sst2, ["sst2"], on_bad_row="error")
    assert report["sst2"]["train"] == 2
    assert report["sst2"]["dev"] == {"dev": 1}
    assert len(report["sst2"]["digest"]) == 16


def test_checking_complains_of_the_task_that_is_missing(sst2: Path) -> None:
    with pytest.raises(DataError, match="no folder CoLA or cola"):
        check_task_folder(sst2, ["sst2", "cola"], on_bad_row="error")


def test_the_digest_is_of_the_examples_not_of_the_line_ends(sst2: Path) -> None:
    before = check_task_folder(sst2, ["sst2"], on_bad_row="error")["sst2"]["digest"]
    write(sst2, "SST-2/train.tsv", "sentence\tlabel\r\ngood film \t1\r\nbad film \t0\r\n")
    assert check_task_folder(sst2, ["sst2"], on_bad_row="error")["sst2"]["digest"] == before
    write(sst2, "SST-2/train.tsv", "sentence\tlabel\ngood film \t1\nbad film \t1\n")
    assert check_task_folder(sst2, ["sst2"], on_bad_row="error")["sst2"]["digest"] != before


def hub_folder(root: Path, task: str, splits: dict[str, str]) -> str:
    """A local dataset that datasets.load_dataset(folder, task) reads as it would the hub's."""
    entries = []
    for split, lines in splits.items():
        write(root, f"{task}/{split}.jsonl", lines)
        entries.append(f"  - split: {split}\n    path: {task}/{split}.jsonl\n")
    write(root, "README.md", f"---\nconfigs:\n- config_name: {task}\n  data_files:\n{''.join(entries)}---\n")
    return str(root)


@pytest.fixture(autouse=True)
def local_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_the_hub_form_equals_the_classic_form(tmp_path: Path) -> None:
    row = "0\tp\th\tneutral\n"
    for name in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path, f"MNLI/{name}.tsv", "index\tsentence1\tsentence2\tgold_label\n" + row)
    line = '{"premise": "p", "hypothesis": "h", "label": 1, "idx": 0}\n'
    splits = ("train", "validation_matched", "validation_mismatched")
    name = hub_folder(tmp_path / "hub", "mnli", dict.fromkeys(splits, line))
    assert read_hub_task(name, "mnli") == read_task(tmp_path, "mnli")
    assert summarise_task(read_hub_task(name, "mnli")) == summarise_task(read_task(tmp_path, "mnli"))


def test_a_single_sentence_and_a_regression_come_from_the_hub(tmp_path: Path) -> None:
    line = '{"sentence1": "a", "sentence2": "b", "label": 2.5}\n'
    name = hub_folder(tmp_path / "stsb", "stsb", {"train": line, "validation": line})
    assert read_hub_task(name, "stsb").dev == {"dev": [Example("a", "b", 2.5)]}
    line = '{"sentence": "a", "label": 1}\n'
    name = hub_folder(tmp_path / "cola", "cola", {"train": line, "validation": line})
    assert read_hub_task(name, "cola").train == [Example("a", None, 1)]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            '{"sentence": "a", "label": -1}',
            '{"sentence": "a", "label": 1}',
            "row 0: label must be 0 .. 1, got -1",
        ),
        (
            '{"text": "a", "label": 1}',
            '{"text": "a", "label": 1}',
            "has no column sentence; columns there: label",
        ),
        ('{"sentence": "a"}', '{"sentence": "a"}', "has no column label; columns there: sentence"),
        ('{"sentence": "a", "label": 1}', None, "has no split validation, only train"),
    ],
)
def test_what_is_wrong_on_the_hub_is_said(tmp_path: Path, train: str, validation: str | None, message: str) -> None:
    splits = {"train": train} if validation is None else {"train": train, "validation": validation}
    with pytest.raises(DataError, match=message):
        read_hub_task(hub_folder(tmp_path, "cola", splits), "cola")


def test_a_configuration_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    name = hub_folder(tmp_path, "cola", {"train": '{"sentence": "a", "label": 1}'})
    with pytest.raises(DataError, match=r"\(rte\) cannot be loaded: .*--glue sample"):
        read_hub_task(name, "rte")


def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: str) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"nyu-mll/glue \(rte\) cannot be loaded: Couldn't reach"):
        read_hub_task("nyu-mll/glue", "rte")


# Test sets, and the other forms a task may have


def test_a_test_set_is_read_on_demand_and_has_no_labels(sst2: Path) -> None:
    write(sst2, "SST-2/test.tsv", 'index\tsentence\n0\ta dull film\n1\ta "new" film\n')
    assert read_task(sst2, "sst2").test == {}
    found = read_task(sst2, "sst2", with_test=True).test
    assert found == {"test": [Example("a dull film", None, None), Example('a "new" film', None, None)]}
    assert summarise_task(read_task(sst2, "sst2", with_test=True))["test"] == {"test": 2}


def test_colas_test_set_has_a_header_and_its_training_set_none(tmp_path: Path) -> None:
    write(tmp_path, "CoLA/train.tsv", "gj04\t1\t\tBill sank.\n")
    write(tmp_path, "CoLA/dev.tsv", "gj04\t1\t\tIt rolls.")
    write(tmp_path, "CoLA/test.tsv", "index\tsentence\n0\tBill rolls.\n")
    assert read_task(tmp_path, "cola", with_test=True).test == {"test": [Example("Bill rolls.", None, None)]}


def test_a_broken_line_of_a_test_set_is_never_skipped(sst2: Path) -> None:
    write(sst2, "SST-2/test.tsv", "index\tsentence\n0\ta\nbroken\n")
    with pytest.raises(DataError, match=r"test.tsv, line 3: 2 tab-separated .*wants an answer to every"):
        read_task(sst2, "sst2", on_bad_row="skip", with_test=True)


def test_a_digest_is_of_what_has_labels(sst2: Path) -> None:
    before = summarise_task(read_task(sst2, "sst2"))["digest"]
    write(sst2, "SST-2/test.tsv", "index\tsentence\n0\ta\n")
    assert summarise_task(read_task(sst2, "sst2", with_test=True))["digest"] == before


@pytest.mark.parametrize("file", ["AX/diagnostic.tsv", "diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX/test.tsv"])
def test_the_diagnostic_set_is_found_under_its_names(tmp_path: Path, file: str) -> None:
    write(tmp_path, file, "index\tsentence1\tsentence2\n0\tThe cat sat.\tThe cat did not sit.\n")
    data = read_task(tmp_path, "ax", with_test=True)
    assert data.test == {"test": [Example("The cat sat.", "The cat did not sit.", None)]}
    assert (data.train, data.dev) == ([], {})


def test_a_diagnostic_folder_without_its_file_says_which_it_wants(tmp_path: Path) -> None:
    (tmp_path / "AX").mkdir()
    with pytest.raises(DataError, match=r"task ax needs diagnostic.tsv or AX.tsv or test.tsv in .*AX"):
        read_task(tmp_path, "ax", with_test=True)


def rte_rows(label: int | None) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"sentence1": "a", "sentence2": "b", "idx": 0},
        {"sentence1": "c", "sentence2": "d"},
    ]
    return [{**row, "idx": index, "label": -1 if label is None else label} for index, row in enumerate(rows)]


def rte_as_datasets() -> Any:
    import datasets

    splits = {"train": rte_rows(0), "validation": rte_rows(1), "test": rte_rows(None)}
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def save_to_disk(folder: Path) -> None:
    rte_as_datasets().save_to_disk(str(folder))


def save_parquet(folder: Path) -> None:
    for split, rows in rte_as_datasets().items():
        rows.to_parquet(str(folder / f"{split}.parquet"))


def save_parquet_in_parts(folder: Path) -> None:
    for split, rows in rte_as_datasets().items():
        for part in range(2):
            rows.select([part]).to_parquet(str(folder / f"{split}-0000{part}-of-00002.parquet"))


@pytest.mark.parametrize("save", [save_to_disk, save_parquet, save_parquet_in_parts])
@pytest.mark.parametrize("folder", ["RTE", "rte"])
def test_what_datasets_saved_equals_the_classic_form(tmp_path: Path, save: Any, folder: str) -> None:
    (tmp_path / "saved" / folder).mkdir(parents=True)
    save(tmp_path / "saved" / folder)
    header = "index\tsentence1\tsentence2\tlabel\n"
    write(tmp_path, "RTE/train.tsv", f"{header}0\ta\tb\tentailment\n1\tc\td\tentailment\n")
    write(tmp_path, "RTE/dev.tsv", f"{header}0\ta\tb\tnot_entailment\n1\tc\td\tnot_entailment\n")
    write(tmp_path, "RTE/test.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    found = read_task(tmp_path / "saved", "rte", with_test=True)
    assert found == read_task(tmp_path, "rte", with_test=True)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "rte/train.parquet", b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet"):
        read_task(tmp_path, "rte")


def test_parquet_without_a_split_names_those_there_are(tmp_path: Path) -> None:
    rte_as_datasets()["train"].to_parquet(str(write(tmp_path, "rte/train.parquet", "")))
    with pytest.raises(DataError, match=r"rte has no split validation, only train"):
        read_task(tmp_path, "rte")


# Tasks of one's own

TICKETS = {
    "text": ["body"],
    "label": "team",
    "labels": ["billing", "technical"],
    "train": "train.csv",
    "dev": "dev.csv",
}


def write_tickets(root: Path, **changes: object) -> Path:
    given = {name: value for name, value in {**TICKETS, **changes}.items() if value is not None}
    write(root, "tickets/task.json", json.dumps(given))
    write(root, "tickets/train.csv", 'team,body\nbilling,"Two, or three, charges ""again"""\ntechnical,It crashed\n')
    write(root, "tickets/dev.csv", "body,team\r\nNo invoice,billing\r\n")
    return root


def test_a_task_of_ones_own_is_described_by_a_file(tmp_path: Path) -> None:
    data = read_task(write_tickets(tmp_path), "tickets")
    assert data.train == [Example('Two, or three, charges "again"', None, 0), Example("It crashed", None, 1)]
    assert data.dev == {"dev": [Example("No invoice", None, 0)]}
    assert (data.spec.main_metric, data.spec.num_labels, data.spec.epochs) == ("accuracy", 2, 3.0)


def test_a_task_of_ones_own_may_lie_in_parquet(tmp_path: Path) -> None:
    """Its labels are words, not ids as in the hub's Parquet."""
    folder = write_tickets(tmp_path, train="train.parquet", dev="dev.parquet") / "tickets"
    for name in ("train", "dev"):
        pq.write_table(pa.table({"body": [f"{name} it"], "team": ["technical"]}), folder / f"{name}.parquet")
    data = read_task(tmp_path, "tickets")
    assert (data.train, data.dev) == ([Example("train it", None, 1)], {"dev": [Example("dev it", None, 1)]})


def test_superglue_style_lines_of_json_with_true_and_false(tmp_path: Path) -> None:
    given = {"text": ["question", "passage"], "labels": ["false", "true"], "train": "train.jsonl", "dev": "val.jsonl"}
    write(tmp_path, "boolq/task.json", json.dumps({**given, "test": "test.jsonl", "metrics": ["accuracy", "f1"]}))
    for name in ("train", "val"):
        write(tmp_path, f"boolq/{name}.jsonl", '{"question": "q", "passage": "p", "label": true, "idx": 0}\n')
    write(tmp_path, "boolq/test.jsonl", '{"question": "q", "passage": "p", "idx": 0}\n')
    data = read_task(tmp_path, "boolq", with_test=True)
    assert data.train == [Example("q", "p", 1)]
    assert data.test == {"test": [Example("q", "p", None)]}


def test_a_regression_of_ones_own_has_no_bounds(tmp_path: Path) -> None:
    given = {"text": ["a", "b"], "label": "score", "train": "t.tsv", "dev": "d.tsv", "metrics": ["spearman"]}
    write(tmp_path, "alike/task.json", json.dumps(given))
    for name in "td":
        write(tmp_path, f"alike/{name}.tsv", "a\tb\tscore\nx\ty\t-17.5\n")
    data = read_task(tmp_path, "alike")
    assert data.train == [Example("x", "y", -17.5)]
    assert (data.spec.is_regression, data.spec.main_metric) == (True, "spearman")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "text must be a list of 1 to 2 different words, got \\[\\]"),
        ({"text": ["a", "b", "c"]}, "text must be a list of 1 to 2 different words"),
        ({"labels": ["billing"]}, "labels must be a list of 2 to 1000 different words"),
        ({"metrics": ["bleu"]}, "metrics must be of accuracy, f1, macro_f1, matthews, got 'bleu'"),
        (
            {"labels": None, "metrics": ["f1"]},
            "metrics must be of pearson, spearman, got 'f1': without labels it is a regression",
        ),
        ({"train": "../train.csv"}, "train must be a file beside it, got '../train.csv'"),
        ({"dev": None}, "dev must be a name, got None"),
        ({"epochs": 0}, "epochs must be a number > 0, got 0"),
        ({"label_column": "x"}, "unknown key 'label_column'; the keys are text, label, labels"),
        ({"train": "train.xlsx"}, "task tickets needs train.xlsx in .*; files there: dev.csv, task.json, train.csv"),
    ],
)
def test_what_is_wrong_with_a_task_file_is_said(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_task(write_tickets(tmp_path, **changes), "tickets")


@pytest.mark.parametrize("name", ["tickets (1)", "tickets*", "50% off"])
def test_a_folder_whose_name_no_score_can_bear_is_refused(tmp_path: Path, name: str) -> None:
    (write_tickets(tmp_path) / "tickets").rename(tmp_path / name)
    message = f"must have letters, digits, spaces, _, -, . and : alone, got {name!r}; rename the folder"
    with pytest.raises(DataError, match=re.escape(message)):
        read_task(tmp_path, name)


def test_a_folder_may_be_named_in_another_script(tmp_path: Path) -> None:
    (write_tickets(tmp_path) / "tickets").rename(tmp_path / "Fälle 任务-1.b_2")
    assert read_task(tmp_path, "Fälle 任务-1.b_2").name == "Fälle 任务-1.b_2"


def test_a_task_file_in_a_folder_of_a_glue_task_is_said_to_need_another_name(tmp_path: Path) -> None:
    (write_tickets(tmp_path) / "tickets").rename(tmp_path / "rte")
    with pytest.raises(DataError, match=r"rte is GLUE's own; for a task of yours by its task\.json, rename the folder"):
        read_task(tmp_path, "rte")


def test_a_row_of_a_task_of_ones_own_is_named_by_its_line(tmp_path: Path) -> None:
    write_tickets(tmp_path)
    write(tmp_path, "tickets/dev.csv", "body,team\nNo invoice,sales\n")
    with pytest.raises(DataError, match=r"dev.csv, line 2: team must be one of billing, technical, got 'sales'"):
        read_task(tmp_path, "tickets")
    write(tmp_path, "tickets/dev.csv", "body,team\nNo invoice\n")
    with pytest.raises(DataError, match=r"dev.csv, line 2: 2 comma-separated columns expected"):
        read_task(tmp_path, "tickets")
    write(tmp_path, "tickets/dev.csv", "body,team\nNo invoice,billing\n\nIt stops, too,technical\n")  # no quotes
    with pytest.raises(DataError, match=r"dev.csv, line 4: 2 comma-separated columns expected, got 3"):
        read_task(tmp_path, "tickets")


def test_an_unknown_task_offers_the_folders_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of cola, .*, tickets; got 'ticket'. Did you mean 'tickets'\?"):
        read_task(write_tickets(tmp_path), "ticket")
    with pytest.raises(ConfigError, match=r"got '\.\./tickets'"):
        read_task(write_tickets(tmp_path), "../tickets")
