"""Addresses of text: what they name, how it is cut, and what is said when nothing is there."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import Terminal

from fast_electra_core.errors import DataError
from steps.corpus import Corpus, resolve_corpus
from steps.fan_out import in_groups
from steps.store import Store
from steps.tokenization import documents_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    (path / "deep" / "er").mkdir(parents=True)
    (path / ".git").mkdir()
    (path / "a.txt").write_text("alpha\n")
    (path / "deep" / "b.jsonl").write_text('{"text": "beta"}\n')
    (path / "deep" / "er" / "c.txt.gz").write_bytes(gzip.compress(b"gamma\n", mtime=0))
    (path / "deep" / "notes.pdf").write_text("not text")
    (path / "empty.txt").write_text("")
    (path / ".hidden.txt").write_text("hidden\n")
    (path / ".git" / "d.txt").write_text("hidden\n")
    return path


def resolve(address: object, store: Store, *, shard_megabytes: float = 1.0) -> Corpus:
    return resolve_corpus(str(address), store=store, text_field="text", shard_megabytes=shard_megabytes)


def texts(corpus: Corpus, store: Store) -> list[str]:
    config = {"text_field": "text", "on_bad_text": "error"}
    return [text for shard in corpus.shards for text in documents_of(shard, config, store)]


def test_a_folder_is_read_recursively_without_hidden_and_unknown_files(folder: Path, store: Store) -> None:
    corpus = resolve(folder, store)
    assert texts(corpus, store) == ["alpha", "beta", "gamma"]
    assert (corpus.num_files, corpus.num_ignored) == (3, 2)  # ignored: notes.pdf, empty.txt
    assert corpus.num_bytes == 6 + 17 + (folder / "deep/er/c.txt.gz").stat().st_size


@pytest.mark.parametrize("place", [".", "deep/store"])
def test_a_folder_that_holds_the_store_is_refused_unless_the_store_is_hidden_there(folder: Path, place: str) -> None:
    message = f"corpus '{folder}' holds the store '{folder / place}', whose files would be taken for text. Give the fol"
    with pytest.raises(DataError, match=re.escape(message)):
        resolve(folder, Store(str(folder / place)))
    assert resolve(folder, Store(str(folder / ".fast_electra"))).num_files == 3
    assert resolve(folder / "deep", Store(str(folder / "deeper"))).num_files == 2


def test_a_folder_that_holds_the_artifacts_of_mlflow_is_refused(folder: Path, store: Store) -> None:
    def resolved(corpus: Path) -> Corpus:
        artifacts = folder / "deep" / "mlartifacts"
        return resolve_corpus(str(corpus), store=store, text_field="text", shard_megabytes=1.0, artifacts=artifacts)

    expected = (
        f"corpus '{folder}' holds the folder of MLflow's artifacts '{folder}/deep/mlartifacts', whose files would"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        resolved(folder)
    assert resolved(folder / "a.txt").num_files == 1
    assert resolved(folder / "deep" / "er").num_files == 1


def test_a_pattern_is_refused_where_it_finds_what_is_in_the_store_and_not_where_it_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    store = Store(str(folder / "deep" / "store"))
    assert resolve("**/*.txt", store).num_files == 1
    (store.folder / "corpora" / "kept").mkdir(parents=True)
    (store.folder / "corpora" / "kept" / "k.txt").write_text("kept\n")
    with pytest.raises(DataError, match=re.escape(f"{folder}/**/*.txt' holds the store '{folder}/deep/store'")):
        resolve("**/*.txt", store)
    assert resolve("*.txt", store).num_files == 1
    assert resolve("deep/er/*.gz", store).num_files == 1


def test_text_that_was_put_into_the_store_may_be_named(store: Store) -> None:
    (store.folder / "texts").mkdir()
    (store.folder / "texts" / "t.txt").write_text("there\n")
    for address in ("texts", "texts/t.txt", "texts/*.txt"):
        assert resolve(store.folder / address, store).num_files == 1


def test_links_to_folders_are_followed_and_no_folder_is_read_twice(folder: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("delta\n")
    (folder / "deep" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "z").symlink_to(tmp_path / "elsewhere")
    corpus = resolve(folder, store)
    assert texts(corpus, store) == ["alpha", "beta", "gamma", "delta"]
    assert [file["name"] for file in corpus.files] == [
        "a.txt", "deep/b.jsonl", "deep/er/c.txt.gz", "deep/linked/d.txt",
    ]  # fmt: skip


def test_a_pipe_is_no_corpus(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe' is neither a file nor a folder\. .* write it to a file"):
        resolve(tmp_path / "pipe", store)


def test_a_file_and_a_pattern_name_their_files(folder: Path, store: Store) -> None:
    assert texts(resolve(folder / "a.txt", store), store) == ["alpha"]
    assert texts(resolve(f"{folder}/*.txt", store), store) == ["alpha"]
    assert texts(resolve(f"{folder}/**/*.txt*", store), store) == ["alpha", "gamma"]


def test_relative_addresses_and_the_home_folder_are_understood(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    expected = resolve(folder, store)
    assert resolve("texts", store).shards == expected.shards
    assert resolve("~/texts", store).shards == expected.shards


@pytest.mark.parametrize("address", ["texts", "./texts/../texts", "~/texts", "link"])
def test_a_local_address_becomes_absolute_and_the_digest_stays(
    address: str, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    corpus = resolve(address, store)
    assert corpus.address == str(folder.resolve())
    assert corpus.digest == resolve(folder, store).digest


def test_the_address_of_a_pattern_becomes_absolute_too(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert resolve("**/*.jsonl", store).address == f"{folder.resolve()}/**/*.jsonl"


def test_the_digest_is_of_names_and_contents_not_of_the_place(folder: Path, store: Store) -> None:
    before = resolve(folder, store)
    moved = resolve(folder.rename(folder.with_name("moved")), store)
    assert moved.digest == before.digest
    assert [shard["digest"] for shard in moved.shards] == [shard["digest"] for shard in before.shards]
    (folder.with_name("moved") / "a.txt").rename(folder.with_name("moved") / "A.txt")
    renamed = resolve(folder.with_name("moved"), store)
    assert renamed.digest != before.digest
    (folder.with_name("moved") / "A.txt").rename(folder.with_name("moved") / "a.txt")
    (folder.with_name("moved") / "a.txt").write_text("Alpha\n")
    assert resolve(folder.with_name("moved"), store).digest != before.digest


def test_only_the_shards_whose_text_changed_have_another_digest(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "texts"
    path.mkdir()
    for name in "abc":
        (path / f"{name}.txt").write_text(name * 900 + "\n")
    before = [shard["digest"] for shard in resolve(path, store, shard_megabytes=0.001).shards]
    (path / "b.txt").write_text("x" * 900 + "\n")
    after = [shard["digest"] for shard in resolve(path, store, shard_megabytes=0.001).shards]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_a_shards_digest_is_of_all_that_decides_what_is_read_of_its_files(tmp_path: Path, store: Store) -> None:
    (tmp_path / "a.txt").write_text("one line\n" * 100)

    def first_digest(name: str, shard_megabytes: float) -> str:
        return str(resolve(tmp_path / name, store, shard_megabytes=shard_megabytes).shards[0]["digest"])

    whole, half, third = (first_digest("a.txt", size) for size in (0.0009, 0.0005, 0.0003))
    (tmp_path / "a.txt").rename(tmp_path / "a.jsonl")
    of_json = first_digest("a.jsonl", 0.0009)
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt.gz")
    assert len({whole, half, third, of_json, first_digest("a.txt.gz", 0.0009)}) == 5


def test_small_files_share_a_shard_up_to_its_size(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "texts"
    path.mkdir()
    for index in range(5):
        (path / f"{index}.txt").write_text("x" * 399 + "\n")
    shards = resolve(path, store, shard_megabytes=0.001).shards
    assert [[Path(piece["path"]).stem for piece in shard["pieces"]] for shard in shards] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
    ]
    (path / "0.txt").write_text("x" * 1499 + "\n")  # cut in two
    (path / "1.txt").write_text("x" * 599 + "\n")  # and this with the next fills a shard
    shards = resolve(path, store, shard_megabytes=0.001).shards
    assert [[Path(piece["path"]).stem for piece in shard["pieces"]] for shard in shards] == [
        ["0"],
        ["0"],
        ["1", "2"],
        ["3", "4"],
    ]


def test_a_big_file_is_cut_into_ranges_that_hold_every_line_once(tmp_path: Path, store: Store) -> None:
    lines = [f"line number {index}" for index in range(1000)]
    (tmp_path / "big.txt").write_text("\n".join(lines))
    corpus = resolve(tmp_path / "big.txt", store, shard_megabytes=0.004)
    size = (tmp_path / "big.txt").stat().st_size  # 15,889 bytes
    ranges = [(piece["start"], piece["end"]) for shard in corpus.shards for piece in shard["pieces"]]
    assert ranges == [
        (0, size // 4),
        (size // 4, size // 2),
        (size // 2, size * 3 // 4),
        (size * 3 // 4, size),
    ]
    assert "\n".join(texts(corpus, store)).split("\n") == lines


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet"])
def test_compressed_files_and_parquet_are_never_cut(name: str, tmp_path: Path, store: Store) -> None:
    (tmp_path / name).write_bytes(gzip.compress(os.urandom(5000).hex().encode()))
    shards = resolve(tmp_path / name, store, shard_megabytes=0.001).shards
    assert [[(piece["start"], piece["end"]) for piece in shard["pieces"]] for shard in shards] == [[(0, None)]]


def test_a_corpus_survives_json(folder: Path, store: Store) -> None:
    corpus = resolve(folder, store)
    assert Corpus.from_dict(json.loads(json.dumps(corpus.to_dict()))) == corpus


def test_missing_paths_offer_what_is_called_nearly_so(folder: Path, store: Store) -> None:
    with pytest.raises(DataError, match=r"there is no 'textz' in .*Did you mean 'texts'\?"):
        resolve(folder.with_name("textz"), store)
    with pytest.raises(DataError, match=r"there is no 'dep' in .*texts\. Did you mean 'deep'\?"):
        resolve(folder / "dep" / "er" / "x.txt", store)
    with pytest.raises(DataError, match=r"there is no 'qqqqqq' in .*texts\. Give pydocs, a file"):
        resolve(folder / "qqqqqq", store)


def test_places_without_text_are_refused(folder: Path, store: Store) -> None:
    (folder / "nothing").mkdir()
    with pytest.raises(DataError, match=r"holds no files; known are \.txt"):
        resolve(folder / "nothing", store)
    with pytest.raises(DataError, match=r"none of its 1 files is text; known are \.txt, \.jsonl"):
        resolve(folder / "deep" / "notes.pdf", store)
    with pytest.raises(DataError, match=r"pattern .*matches no file"):
        resolve(f"{folder}/*.jsonl", store)
    with pytest.raises(DataError, match="is empty: 1 files of 0 bytes"):
        resolve(folder / "empty.txt", store)


def test_pydocs_are_written_once_and_found_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, files: list[Path], *, on_file: Callable[[int], None]) -> dict[str, int]:
        written.append(path)
        path.write_text("A docstring.\n\nAnother one.\n")
        return {"documents": 2}

    monkeypatch.setattr("fast_electra_core.pydocs.write_pydocs", write)
    first, second = resolve("pydocs", store), resolve("pydocs", store)
    assert first == second
    assert len(written) == 1
    assert first.shards[0]["pieces"][0]["path"].startswith("store://corpora/pydocs-")
    assert texts(first, store) == ["A docstring.", "Another one."]


def test_the_reading_of_pydocs_shows_a_bar_over_their_files(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("steps.console._open_terminal", lambda: terminal)
    monkeypatch.setattr("fast_electra_core.pydocs._installed_roots", lambda: [folder])
    for name in ("one.py", "two.py", "three.py"):
        (folder / name).write_text(f'"""A docstring of more than eight words in {name}, all told."""\n')
    resolve("pydocs", store)
    assert "reading docstrings: 100%" in terminal.shown
    assert "3/3" in terminal.shown


def test_pydocs_of_other_packages_are_another_text(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fast_electra_core.pydocs.write_pydocs", lambda path, *_, **__: path.write_text("A docstring.\n")
    )
    resolve("pydocs", store)
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [])
    resolve("pydocs", store)
    assert len(store.list_keys("corpora")) == 2


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [1]), (96, [1] * 96), (97, [2] * 48 + [1]), (1000, [11] * 90 + [10])]
)
def test_any_number_of_shards_is_at_most_96_tasks_in_order(number: int, expected: list[int]) -> None:
    groups = in_groups(range(number))
    assert [len(group) for group in groups] == expected
    assert [item for group in groups for item in group] == list(range(number))
