"""Task files in exactly the shapes in which GLUE's sets are handed round, and folders that are not what they say."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fast_electra_core.errors import DataError
from fast_electra_core.glue import Example
from fast_electra_core.glue_files import read_task

MNLI_START = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2"
)
MNLI_CELLS = "63735\t63735n\tslate\t( ( He left ) . )\t( He stayed )\t(ROOT (S (NP (PRP He))))\t(ROOT (S))"
STSB_START = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
QQP_START = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
MSR_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"

REAL = {
    "cola": (
        "CoLA",
        {
            "train.tsv": "gj04\t1\t\tThe ball rolled.\nks08\t0\t*\tRolled ball the.\n",
            "dev.tsv": 'gj04\t0\t*\t"Who" left?\n',
            "test.tsv": "index\tsentence\n0\tIt rolled.\n",
        },
        [Example("The ball rolled.", None, 1), Example("Rolled ball the.", None, 0)],
    ),
    "sst2": (
        "SST-2",
        {
            "train.tsv": "sentence\tlabel\nhide the new parts \t0\n",
            "dev.tsv": "sentence\tlabel\n`` quoted '' \t1\n",
            "test.tsv": "index\tsentence\n0\ta mess .\n",
        },
        [Example("hide the new parts ", None, 0)],
    ),
    "mrpc": (
        "MRPC",
        {
            "train.tsv": f'{MSR_HEADER}\n1\t702876\t702977\tHe called it " good .\tIt is good , he said .\n',
            "dev.tsv": f"{MSR_HEADER}\n0\t1\t2\ta\tb\n",
            "test.tsv": "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1089874\t1089925\tc\td\n",
        },
        [Example('He called it " good .', "It is good , he said .", 1)],
    ),
    "stsb": (
        "STS-B",
        {
            "train.tsv": f"{STSB_START}\tscore\n"
            "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tA jet.\t5.000\n"
            '1\tmain-news\theadlines\t2016\t11\tBBC\tCNN\t"No one left\t"Nobody" left\t3.867\n',
            "dev.tsv": f"{STSB_START}\tscore\n4\tmain-captions\tMSRvid\t2012test\t0009\tnone\tnone\ta\tb\t0.000\n",
            "test.tsv": f"{STSB_START}\n0\tmain-captions\tMSRvid\t2012test\t0024\tnone\tnone\tc\td\n",
        },
        [Example("A plane.", "A jet.", 5.0), Example('"No one left', '"Nobody" left', 3.867)],
    ),
    "qqp": (
        "QQP",
        {
            "train.tsv": f'{QQP_START}\n133273\t213221\t213222\tHow is "it?\tHow was it?\t0\n7\t8\t9\tWhy\rnot?\t\t1\n',
            "dev.tsv": f"{QQP_START}\n201359\t303345\t303346\tq\tr\t1\n",
            "test.tsv": "id\tquestion1\tquestion2\n0\ts\tt\n",
        },
        [Example('How is "it?', "How was it?", 0), Example("Why\rnot?", "", 1)],
    ),
    "mnli": (
        "MNLI",
        {
            "train.tsv": f"{MNLI_START}\tlabel1\tgold_label\n"
            f"0\t{MNLI_CELLS}\tHe left.\tHe stayed.\tneutral\tcontradiction\n",
            "dev_matched.tsv": f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
            f"0\t{MNLI_CELLS}\ta\tb\tneutral\tneutral\tentailment\tneutral\tneutral\tneutral\n",
            "dev_mismatched.tsv": f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
            f"0\t{MNLI_CELLS}\tc\td\tneutral\tneutral\tentailment\tneutral\tneutral\tentailment\n",
            "test_matched.tsv": f"{MNLI_START}\n0\t{MNLI_CELLS}\te\tf\n",
            "test_mismatched.tsv": f"{MNLI_START}\n9847\t{MNLI_CELLS}\tg\th\n",
        },
        [Example("He left.", "He stayed.", 2)],
    ),
    "qnli": (
        "QNLI",
        {
            "train.tsv": "index\tquestion\tsentence\tlabel\n0\tWhen did it begin?\tIt began in 1912.\tentailment\n",
            "dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tIt began.\tnot_entailment\n",
            "test.tsv": "index\tquestion\tsentence\n0\tWhat?\tThat.\n",
        },
        [Example("When did it begin?", "It began in 1912.", 0)],
    ),
    "rte": (
        "RTE",
        {
            "train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tIt rains in May.\tIt rains.\tentailment\n",
            "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n",
            "test.tsv": "index\tsentence1\tsentence2\n0\tc\td\n",
        },
        [Example("It rains in May.", "It rains.", 0)],
    ),
    "wnli": (
        "WNLI",
        {
            "train.tsv": 'index\tsentence1\tsentence2\tlabel\n0\tHe said "Check" as he took it.\tHe took it.\t1\n',
            "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
            "test.tsv": "index\tsentence1\tsentence2\n0\tc\td\n",
        },
        [Example('He said "Check" as he took it.', "He took it.", 1)],
    ),
    "ax": (
        "diagnostic",
        {"diagnostic.tsv": "index\tsentence1\tsentence2\n0\tThe cat sat.\tThe cat did not sit.\n"},
        [],
    ),
}


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_real(root: Path, task: str, ending: str = "") -> None:
    folder, files, _ = REAL[task]
    for name, text in files.items():
        write(root / folder / name, text + ending)


@pytest.mark.parametrize("task", REAL)
def test_every_task_is_read_in_the_shape_in_which_it_is_handed_round(tmp_path: Path, task: str) -> None:
    write_real(tmp_path, task)
    data = read_task(tmp_path, task, with_test=True)
    assert data.train == REAL[task][2]
    splits = ["matched", "mismatched"] if task == "mnli" else ["test"]
    assert list(data.test) == splits
    assert list(data.dev) == {"mnli": splits, "ax": []}.get(task, ["dev"])
    assert all(len(examples) == 1 and examples[0].label is None for examples in data.test.values())
    assert data.num_skipped == 0


@pytest.mark.parametrize("task", ["cola", "mrpc", "qqp", "ax"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, task: str) -> None:
    write_real(tmp_path / "as it is", task)
    write_real(tmp_path / "longer", task, ending="\n\n")
    found = read_task(tmp_path / "longer", task, with_test=True)
    assert found == read_task(tmp_path / "as it is", task, with_test=True)


def test_a_blank_line_between_rows_is_a_broken_row(tmp_path: Path) -> None:
    write_real(tmp_path, "wnli")
    write(tmp_path / "WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n\n1\tc\td\t1\n")
    with pytest.raises(DataError, match=r"dev.tsv, line 3: 4 tab-separated columns expected .*, got 1\. Mend"):
        read_task(tmp_path, "wnli")
    data = read_task(tmp_path, "wnli", on_bad_row="skip")
    assert (data.dev["dev"], data.num_skipped) == ([Example("a", "b", 0), Example("c", "d", 1)], 1)
    write(tmp_path / "WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n\n1\tc\td\t1\n2\te\tf\t1\n")
    assert read_task(tmp_path, "wnli", on_bad_row="skip").num_skipped == 1


sentences = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5))
def test_whatever_stands_in_a_sentence_is_read_as_it_was_written(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    write_real(tmp_path, "wnli")
    rows = [f"{index}\t{first}\t{second}\t1\n" for index, (first, second) in enumerate(pairs)]
    write(tmp_path / "WNLI/train.tsv", "index\tsentence1\tsentence2\tlabel\n" + "".join(rows))
    assert read_task(tmp_path, "wnli").train == [Example(first, second, 1) for first, second in pairs]


QQP_TORN = f"{QQP_START}\n1\t2\t3\tq\tr\t1\n4\t5\t6\tWas he a real\n\tWhat is the evidence?\t0\n7\t8\t9\ts\tt\t0\n"


def test_a_question_torn_in_two_is_named_and_the_broken_rows_counted(tmp_path: Path) -> None:
    write_real(tmp_path, "qqp")
    write(tmp_path / "QQP/train.tsv", QQP_TORN)
    message = r"train.tsv, line 3: 6 tab-separated columns expected .*, got 4 \(1 more such rows\).*--on_bad_text skip"
    with pytest.raises(DataError, match=message):
        read_task(tmp_path, "qqp")
    data = read_task(tmp_path, "qqp", on_bad_row="skip")
    assert data.train == [Example("q", "r", 1), Example("s", "t", 0)]
    assert data.num_skipped == 2


MSR_ROWS = "1\t10\t11\ta\tb\r\n0\t20\t21\tc\td\r\n1\t30\t31\te\tf\r\n"


def write_msr(root: Path, ids: str = "dev_ids.tsv") -> None:
    write(root / "MRPC/msr_paraphrase_train.txt", f"{MSR_HEADER}\r\n{MSR_ROWS}")
    write(root / "MRPC/msr_paraphrase_test.txt", f"{MSR_HEADER}\r\n1\t40\t41\tg\th\r\n")
    write(root / "MRPC" / ids, "\ufeff20\t21\n")  # with a byte order mark


@pytest.mark.parametrize("ids", ["dev_ids.tsv", "mrpc_dev_ids.tsv"])
def test_mrpc_as_microsoft_gives_it_is_split_by_the_ids_of_the_dev_set(tmp_path: Path, ids: str) -> None:
    write_msr(tmp_path, ids)
    data = read_task(tmp_path, "mrpc", with_test=True)
    assert data.train == [Example("a", "b", 1), Example("e", "f", 1)]
    assert data.dev == {"dev": [Example("c", "d", 0)]}
    assert data.test == {"test": [Example("g", "h", None)]}


def test_mrpcs_ready_files_go_before_microsofts(tmp_path: Path) -> None:
    write_msr(tmp_path)
    write_real(tmp_path, "mrpc")
    assert read_task(tmp_path, "mrpc").train == REAL["mrpc"][2]


def test_microsofts_mrpc_without_the_ids_says_what_is_missing(tmp_path: Path) -> None:
    write_msr(tmp_path)
    (tmp_path / "MRPC/dev_ids.tsv").unlink()
    with pytest.raises(DataError, match=r"neither train.tsv nor dev_ids.tsv or mrpc_dev_ids.tsv, which names the rows"):
        read_task(tmp_path, "mrpc")


def test_microsofts_mrpc_may_come_without_its_test_set_or_with_one_that_has_no_labels(tmp_path: Path) -> None:
    write_msr(tmp_path)
    (tmp_path / "MRPC/msr_paraphrase_test.txt").unlink()
    assert read_task(tmp_path, "mrpc", with_test=True).test == {}
    write(tmp_path / "MRPC/msr_paraphrase_test.txt", "#1 ID\t#2 ID\t#1 String\t#2 String\n40\t41\tg\th\n")
    assert read_task(tmp_path, "mrpc", with_test=True).test == {"test": [Example("g", "h", None)]}


def test_microsofts_mrpc_without_its_columns_of_ids_or_without_rows_is_named(tmp_path: Path) -> None:
    write_msr(tmp_path)
    train = write(tmp_path / "MRPC/msr_paraphrase_train.txt", "Quality\t#1 String\t#2 String\n1\ta\tb\n")
    with pytest.raises(DataError, match=r"msr_paraphrase_train\.txt has no column #1 ID, #2 ID; columns there: #1 S"):
        read_task(tmp_path, "mrpc")
    write(train, f"{MSR_HEADER}\n")
    with pytest.raises(DataError, match=r"msr_paraphrase_train\.txt holds no examples"):
        read_task(tmp_path, "mrpc")


def test_of_a_test_set_under_two_names_the_first_is_read(tmp_path: Path) -> None:
    write_real(tmp_path, "ax")
    write(tmp_path / "diagnostic/test.tsv", "index\tsentence1\tsentence2\n0\tanother\tset\n")
    expected = [Example("The cat sat.", "The cat did not sit.", None)]
    assert read_task(tmp_path, "ax", with_test=True).test == {"test": expected}


def save_as_parquet(folder: Path, **splits: dict[str, list[Any]]) -> None:
    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def test_the_diagnostic_set_is_read_from_parquet_that_holds_nothing_but_its_test_set(tmp_path: Path) -> None:
    save_as_parquet(tmp_path / "ax", test={"premise": ["a"], "hypothesis": ["b"]})
    data = read_task(tmp_path, "ax", with_test=True)
    assert (data.train, data.dev, data.test) == ([], {}, {"test": [Example("a", "b", None)]})
    (tmp_path / "ax" / "test.parquet").rename(tmp_path / "ax" / "validation.parquet")
    with pytest.raises(DataError, match="ax has no split test, only validation"):
        read_task(tmp_path, "ax")


# Folders that are not what they say


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            {"sentence1": ["a"], "label": [0]},
            "rte, validation has no column sentence2; columns there: label, sentence1",
        ),
        ({"sentence1": [], "sentence2": [], "label": []}, "rte, validation holds no examples"),
    ],
)
def test_a_split_of_parquet_that_cannot_be_used_is_named(
    validation: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    save_as_parquet(
        tmp_path / "rte", train={"sentence1": ["a"], "sentence2": ["b"], "label": [0]}, validation=validation
    )
    with pytest.raises(DataError, match=message):
        read_task(tmp_path, "rte")


def test_where_the_tasks_folder_is_missing_files_are_no_folders_and_one_from_the_hub_is_a_tasks_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "rte").mkdir()
    write(tmp_path / "rte/train.parquet", b"")
    with pytest.raises(DataError, match=rf"folders there: none\. If it is a task's own .* above: {tmp_path}$"):
        read_task(tmp_path / "rte", "cola")


def save_to_disk(folder: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}])
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"splits": ["train", "dev"]}'])
def test_a_damaged_list_of_splits_is_a_clear_error(tmp_path: Path, content: str) -> None:
    save_to_disk(tmp_path / "rte")
    (tmp_path / "rte" / "dataset_dict.json").write_text(content)
    with pytest.raises(DataError, match=r"rte cannot be read as a DatasetDict saved to disk: "):
        read_task(tmp_path, "rte")


def test_a_damaged_arrow_file_is_a_clear_error(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "rte")
    (arrow,) = (tmp_path / "rte" / "validation").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match=r"rte cannot be read as a DatasetDict saved to disk: "):
        read_task(tmp_path, "rte")


def test_a_saved_task_without_a_split_is_named_by_its_folder(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "rte")
    (tmp_path / "rte" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match=rf"{tmp_path / 'rte'} has no split validation, only train"):
        read_task(tmp_path, "rte")


def own_task(folder: Path, **changes: Any) -> Path:
    given = {"text": ["body"], "label": "team", "labels": ["a", "b"], "train": "train.csv", "dev": "dev.csv"}
    write(folder / "task.json", json.dumps(given | changes))
    for name in ("train.csv", "dev.csv"):
        write(folder / name, "body,team\none\u2028two,a\n")
    return folder


def test_a_task_file_says_which_files_are_read_whatever_was_saved_beside_them(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "tickets")
    own_task(tmp_path / "tickets")
    assert read_task(tmp_path, "tickets").train == [Example("one\u2028two", None, 0)]


def test_a_task_file_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    write(own_task(tmp_path / "tickets", train="train.xlsx") / "train.xlsx", b"PK")
    with pytest.raises(DataError, match=r"train\.xlsx: task files are \.tsv, \.csv, \.jsonl or \.parquet"):
        read_task(tmp_path, "tickets")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"task\.json cannot be read as JSON"),
        ("[1]", r"task\.json holds no object; the keys are text, label"),
    ],
)
def test_a_task_file_that_is_no_object_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (own_task(tmp_path / "tickets") / "task.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_task(tmp_path, "tickets")


@pytest.mark.parametrize("header", ["body;team", "body,tem"])
def test_a_header_of_csv_that_lacks_a_column_is_named_as_such(header: str, tmp_path: Path) -> None:
    write(own_task(tmp_path / "tickets") / "train.csv", f"{header}\none,a\n")
    expected = rf"train\.csv, whose columns are separated by commas, has no column .*team; columns there: {header[:4]}"
    with pytest.raises(DataError, match=expected):
        read_task(tmp_path, "tickets")


def test_only_newlines_end_a_line_of_csv(tmp_path: Path) -> None:
    own_task(tmp_path / "tickets")
    assert read_task(tmp_path, "tickets").train == [Example("one\u2028two", None, 0)]


def test_quotes_that_do_not_close_name_file_and_line(tmp_path: Path) -> None:
    write(own_task(tmp_path / "tickets") / "dev.csv", 'body,team\n"one,a\n')
    with pytest.raises(DataError, match=r"dev\.csv, line 2: unexpected end of data"):
        read_task(tmp_path, "tickets")


@pytest.mark.parametrize(
    ("line", "message"), [("{", r"line 2: not JSON: "), ("[1]", r"line 2: no JSON object"), ("{}", r"line 2: no body")]
)
def test_a_line_of_json_that_is_no_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    folder = own_task(tmp_path / "tickets", dev="dev.jsonl")
    write(folder / "dev.jsonl", f'{{"body": "x", "team": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        read_task(tmp_path, "tickets")
