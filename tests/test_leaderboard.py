"""The leaderboard's zip: eleven files by name, header, label words."""

import zipfile
from pathlib import Path

import pytest

from fast_electra_core.errors import DataError
from fast_electra_core.leaderboard import write_submission

ALL = {
    "cola": {"test": [1, 0]},
    "sst2": {"test": [0]},
    "mrpc": {"test": [1]},
    "stsb": {"test": [2.34567, -0.5, 5.5]},
    "mnli": {"matched": [0, 1, 2], "mismatched": [2]},
    "qnli": {"test": [0, 1]},
    "qqp": {"test": [1]},
    "rte": {"test": [1, 0]},
    "wnli": {"test": [0]},
    "ax": {"test": [2, 0, 1]},
}


def read(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_eleven_files_as_the_leaderboard_wants_them(tmp_path: Path) -> None:
    written, missing = write_submission(tmp_path / "a.zip", ALL)
    files = read(tmp_path / "a.zip")
    names = ["CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"]
    assert sorted(written) == sorted(files) == sorted(f"{name}.tsv" for name in names)
    assert missing == []
    assert files["CoLA.tsv"] == "index\tprediction\n0\t1\n1\t0\n"
    assert files["STS-B.tsv"] == "index\tprediction\n0\t2.346\n1\t0.000\n2\t5.000\n"
    assert files["MNLI-m.tsv"] == "index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n"
    assert files["MNLI-mm.tsv"] == "index\tprediction\n0\tcontradiction\n"
    assert files["QNLI.tsv"] == "index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    assert files["RTE.tsv"] == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    assert files["AX.tsv"] == "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n"
    assert files["WNLI.tsv"] == "index\tprediction\n0\t0\n"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    written, missing = write_submission(tmp_path / "a.zip", {"mnli": {"matched": [0]}})
    assert written == ["MNLI-m.tsv"]
    assert len(missing) == 10
    assert "MNLI-mm.tsv" in missing


def test_equal_answers_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_submission(tmp_path / name, ALL)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_set_that_the_leaderboard_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the leaderboard has no test set 'test' of 'tickets'"):
        write_submission(tmp_path / "a.zip", {"tickets": {"test": [0]}})
