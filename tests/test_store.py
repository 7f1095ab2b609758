"""The store: folders appear whole or not at all, in a local folder and in S3."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.exceptions import RetriesExceededError
from botocore.config import Config
from conftest import files_no_larger_than
from flaky import Flaky, flaky

from fast_electra_core.errors import ConfigError, DataError, StoreError
from steps.model_source import download
from steps.store import Store, download_prefix
from steps.tasks import load_task


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("s3")
    return Store("s3://bucket/some/prefix/")


def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The same S3 prefix from where nothing is downloaded yet."""
    monkeypatch.setenv("FAST_ELECTRA_CACHE", str(tmp_path / "another_cache"))
    return Store("s3://bucket/some/prefix")


PUT_AND_GET = """
import sys
from pathlib import Path
from steps.store import Store

store = Store(sys.argv[1])
for name in range(100, 300):
    key = f"kind/{name}"
    if not store.has(key):
        store.put_folder(Path(sys.argv[2]), key)
    folder = store.get_folder(key)
    assert [(folder / f"file{n}").read_text() for n in range(20)] == [str(n) for n in range(20)]
"""


def make_folder(path: Path, **files: str) -> Path:
    for name, content in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return path


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".complete")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def names_in_bucket(s3: Any) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]


def test_a_folder_that_was_put_comes_back(store: Store, tmp_path: Path) -> None:
    local = make_folder(tmp_path / "local", a="1", sub__b="2")
    assert not store.has("kind/name")
    address = store.put_folder(local, "kind/name")
    assert address == store.address("kind/name")
    assert address.endswith("/kind/name")
    assert store.has("kind/name")
    assert contents(store.get_folder("kind/name")) == {"a": "1", "sub/b": "2"}
    assert contents(local) == {"a": "1", "sub/b": "2"}  # a copy was put


@pytest.mark.parametrize("root", ["s3://bucket/runs", "s3://bucket/runs/"])
def test_the_address_in_s3_is_where_the_objects_are(root: str, s3: Any, tmp_path: Path) -> None:
    address = Store(root).put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    assert address == "s3://bucket/runs/kind/name"
    assert names_in_bucket(s3) == ["runs/kind/name/.complete", "runs/kind/name/a"]


def test_putting_again_replaces_all_of_the_folder(store: Store, tmp_path: Path) -> None:
    store.put_folder(make_folder(tmp_path / "first", a="1", old="x"), "kind/name")
    store.put_folder(make_folder(tmp_path / "second", a="2"), "kind/name")
    assert contents(store.get_folder("kind/name")) == {"a": "2"}


def test_putting_the_same_again_leaves_the_files_that_others_may_be_reading(store: Store, tmp_path: Path) -> None:
    local = make_folder(tmp_path / "local", a="1", sub__b="2")
    store.put_folder(local, "kind/name")
    file = store.get_folder("kind/name") / "sub" / "b"
    inode = file.stat().st_ino
    store.put_folder(local, "kind/name")
    assert file.stat().st_ino == inode


def test_processes_that_put_the_same_key_at_once_do_not_hinder_each_other(tmp_path: Path) -> None:
    """Two shards of the same text, say, that two tasks make; each reads it at once behind."""
    local, root = make_folder(tmp_path / "local", **{f"file{n}": str(n) for n in range(20)}), str(tmp_path / "store")
    Store(root)
    processes = [subprocess.Popen([sys.executable, "-c", PUT_AND_GET, root, str(local)]) for _ in range(4)]
    assert [process.wait(timeout=100) for process in processes] == [0] * 4
    assert sorted(Store(root).path("kind").iterdir()) == [Store(root).path(f"kind/{n}") for n in range(100, 300)]


def test_a_folder_written_in_place_can_be_put(store: Store) -> None:
    folder = make_folder(store.path("runs/r/checkpoints/step-1"), tensors="t")
    assert not store.has("runs/r/checkpoints/step-1")
    store.put_folder(folder, "runs/r/checkpoints/step-1")
    assert store.has("runs/r/checkpoints/step-1")
    assert contents(store.get_folder("runs/r/checkpoints/step-1")) == {"tensors": "t"}


def test_a_folder_without_its_marker_is_not_there(store: Store) -> None:
    make_folder(store.path("tokens/half"), train="half a shard")
    assert not store.has("tokens/half")
    assert store.list_keys("tokens") == []
    with pytest.raises(
        DataError, match="tokens/half is missing or incomplete; put it back, or `resume STEP` from the step"
    ):
        store.get_folder("tokens/half")


def test_a_copy_that_breaks_leaves_nothing_to_be_seen(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_folder(tmp_path / "local", a="1", b="2")

    copy = shutil.copytree

    def copy_half(source: Path, target: Path) -> None:
        copy(source, target, ignore=shutil.ignore_patterns("b"))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(shutil, "copytree", copy_half)
        store.put_folder(local, "kind/name")
    assert not store.has("kind/name")
    assert store.list_keys("kind") == []
    assert list(store.path("kind").iterdir()) == []
    store.put_folder(local, "kind/name")
    assert contents(store.get_folder("kind/name")) == {"a": "1", "b": "2"}


def test_a_disk_that_is_full_is_said_as_what_it_is_not_as_a_list_of_copies(tmp_path: Path) -> None:
    local = make_folder(tmp_path / "local", large="a" * 2000, larger="a" * 3000)
    store = Store(str(tmp_path / "store"))
    with files_no_larger_than(1000), pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '[^,]*large"):
        store.put_folder(local, "kind/name")


def test_keys_are_listed_sorted_and_without_those_deeper_down(store: Store, tmp_path: Path) -> None:
    local = make_folder(tmp_path / "local", a="1")
    for key in ("tokens/b", "tokens/a", "tokens/a/deeper", "tokens_too/c"):
        store.put_folder(local, key)
    assert store.list_keys("tokens") == ["tokens/a", "tokens/b"]
    assert store.list_keys("nothing") == []


def test_a_deleted_folder_is_gone_and_its_neighbours_stay(store: Store, tmp_path: Path) -> None:
    local = make_folder(tmp_path / "local", a="1")
    for key in ("kind/one", "kind/one_more"):
        store.put_folder(local, key)
    store.delete("kind/one")
    assert not store.has("kind/one")
    assert not store.path("kind/one").exists()
    assert contents(store.get_folder("kind/one_more")) == {"a": "1"}
    store.delete("kind/one")  # nothing to delete is no error


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc"])
def test_a_key_that_leads_out_of_the_store_is_refused(key: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leads out of the store"):
        store.path(key)
    with pytest.raises(ConfigError, match="leads out of the store"):
        store.put_folder(make_folder(tmp_path / "local", a="1"), key)


def test_a_store_below_a_file_cannot_be_written_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"store '.*/file/store' cannot be written: .* Give another --store"):
        Store(str(tmp_path / "file" / "store"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_permission_cannot_be_written_and_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        Store(str(tmp_path))


def test_a_tilde_is_the_home_and_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--store=~/runs` comes so from a shell, and from a file of defaults."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/runs").folder == tmp_path / "runs"
    assert make_folder(tmp_path / "model", config="{}").is_dir()
    assert download("~/model", tmp_path / "scratch", "", role="model") == (tmp_path / "model", None)


@pytest.mark.parametrize("root", ["gs://bucket/store", "S3://bucket/store", "file:///store"])
def test_an_address_that_is_neither_s3_s_nor_a_folder_s_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"store must be a folder or s3://BUCKET/PREFIX, got '{root}'"):
        Store(root)
    assert not list(tmp_path.iterdir())


def test_an_s3_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(ConfigError, match="store must be s3://BUCKET/PREFIX, got 's3://'"):
        Store("s3://")


# S3 alone


def test_in_s3_another_machine_sees_the_folder(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store("s3://bucket/some/prefix").put_folder(make_folder(tmp_path / "local", a="1", sub__b="2"), "kind/name")
    other = other_machine(monkeypatch, tmp_path)
    assert other.has("kind/name")
    assert other.list_keys("kind") == ["kind/name"]
    assert contents(other.get_folder("kind/name")) == {"a": "1", "sub/b": "2"}
    assert contents(other.get_folder("kind/name")) == {"a": "1", "sub/b": "2"}  # now from its own copy
    assert names_in_bucket(s3) == [f"some/prefix/kind/name/{name}" for name in (".complete", "a", "sub/b")]


def test_in_s3_an_upload_that_broke_off_is_not_there(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="bucket", Key="some/prefix/kind/name/a", Body=b"1")  # its marker never came
    other = other_machine(monkeypatch, tmp_path)
    assert not other.has("kind/name")
    assert other.list_keys("kind") == []
    with pytest.raises(DataError, match="s3://bucket/some/prefix/kind/name is missing or incomplete"):
        other.get_folder("kind/name")


def test_in_s3_the_marker_is_uploaded_last(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/p")
    uploaded = []
    client = store._client()
    client.meta.events.register("before-call.s3.PutObject", lambda params, **more: uploaded.append(params["url_path"]))
    monkeypatch.setattr(store, "_client", lambda: client)
    store.put_folder(make_folder(tmp_path / "local", **{"zzz": "1", "a": "2"}), "k/n")
    assert uploaded == [f"/p/k/n/{name}" for name in ("a", "zzz", ".complete")]


@pytest.fixture
def through_proxy(s3: Any, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """S3 as a store meets it, whose client does not try again."""
    with flaky(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(
            "steps.store.s3_client", lambda: boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
        )
        yield proxy


def test_what_s3_did_not_take_is_not_there_and_is_put_by_the_next_attempt(
    s3: Any, through_proxy: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, local = Store("s3://bucket/some/prefix"), make_folder(tmp_path / "local", a="1")
    through_proxy.fates = ["503"]
    with pytest.raises(StoreError, match=r"cannot list s3://bucket/some/prefix/kind/name/: .*Is there a bucket bucket"):
        store.put_folder(local, "kind/name")
    through_proxy.fates = ["503", "pass"]  # the second connection may list, the third not write
    with pytest.raises(StoreError, match=r"cannot write s3://bucket/some/prefix/kind/name: .*Mend it and resume"):
        store.put_folder(local, "kind/name")
    through_proxy.fates = ["pass"]
    assert not store.has("kind/name")
    store.put_folder(local, "kind/name")
    assert contents(other_machine(monkeypatch, tmp_path).get_folder("kind/name")) == {"a": "1"}


def test_what_was_deleted_in_s3_is_made_again(s3: Any, tmp_path: Path) -> None:
    """This machine's copy alone would help no other."""
    store = Store("s3://bucket/some/prefix")
    store.put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    for name in names_in_bucket(s3):
        s3.delete_object(Bucket="bucket", Key=name)
    assert not store.has("kind/name")


def test_in_s3_putting_again_replaces_all_of_the_folder(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("s3://bucket/some/prefix")
    store.put_folder(make_folder(tmp_path / "first", a="1", old="x"), "kind/name")
    store.put_folder(make_folder(tmp_path / "second", a="2"), "kind/name")
    assert contents(other_machine(monkeypatch, tmp_path).get_folder("kind/name")) == {"a": "2"}


def test_a_bucket_that_is_not_there_is_named_with_what_to_do(s3: Any) -> None:
    with pytest.raises(StoreError, match=r"cannot list s3://bukket/store/a.*NoSuchBucket.* give another --store"):
        Store("s3://bukket/store").has("a")


def test_a_download_that_breaks_off_leaves_nothing(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store("s3://bucket/some/prefix").put_folder(make_folder(tmp_path / "local", a="1", b="2"), "kind/name")
    other = other_machine(monkeypatch, tmp_path)
    client = other._client()
    fetch = client.download_file

    def download_file(bucket: str, name: str, path: str) -> None:
        fetch(bucket, name, path)
        if name.endswith("a"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(client, "download_file", download_file)
    monkeypatch.setattr(other, "_client", lambda: client)
    with pytest.raises(OSError, match="No space left"):
        other.get_folder("kind/name")
    assert list(other.path("kind").iterdir()) == []


def test_in_s3_a_deleted_folder_is_gone_for_all(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/some/prefix")
    store.put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    store.delete("kind/name")
    assert names_in_bucket(s3) == []
    assert not other_machine(monkeypatch, tmp_path).has("kind/name")


def test_a_store_may_be_a_whole_bucket(s3: Any, tmp_path: Path) -> None:
    store = Store("s3://bucket")
    store.put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    assert names_in_bucket(s3) == ["kind/name/.complete", "kind/name/a"]
    assert store.list_keys("kind") == ["kind/name"]


def test_an_object_that_leads_out_of_its_folder_is_refused(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("../../../escaped", ".complete"):
        s3.put_object(Bucket="bucket", Key=f"some/prefix/kind/name/{name}", Body=b"")
    with pytest.raises(DataError, match=r"escaped' leads out of its folder and is refused"):
        other_machine(monkeypatch, tmp_path).get_folder("kind/name")
    assert not list(tmp_path.rglob("escaped"))


def test_a_download_that_another_process_has_finished_first_leaves_its_files_alone(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store("s3://bucket/some/prefix").put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    ours, theirs = other_machine(monkeypatch, tmp_path), other_machine(monkeypatch, tmp_path)
    client = ours._client()
    fetch = client.download_file

    def download_file(*arguments: Any) -> None:
        fetch(*arguments)
        theirs.get_folder("kind/name")

    monkeypatch.setattr(client, "download_file", download_file)
    monkeypatch.setattr(ours, "_client", lambda: client)
    opened = theirs.path("kind/name") / "a"
    assert contents(ours.get_folder("kind/name")) == {"a": "1"}
    inode = opened.stat().st_ino
    ours._download("kind/name", ours.path("kind/name"))
    assert opened.stat().st_ino == inode
    assert [path.name for path in opened.parent.parent.iterdir()] == ["name"]


def test_a_half_downloaded_folder_is_replaced(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store("s3://bucket/some/prefix").put_folder(make_folder(tmp_path / "local", a="1"), "kind/name")
    other = other_machine(monkeypatch, tmp_path)
    make_folder(other.path("kind/name"), half="of it")
    assert contents(other.get_folder("kind/name")) == {"a": "1"}


def test_download_prefix_takes_the_files_of_that_folder_alone(s3: Any, tmp_path: Path) -> None:
    for name in ("m/config.json", "m/w.safetensors", "m/w.bin", "m/deeper/x.json", "m2/y.json"):
        s3.put_object(Bucket="bucket", Key=name, Body=name.encode())
    folder = download_prefix("s3://bucket/m", tmp_path / "m", suffixes=(".json", ".safetensors"))
    assert contents(folder) == {"config.json": "m/config.json", "w.safetensors": "m/w.safetensors"}


def test_download_prefix_says_what_is_not_there(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://bucket/none holds no file ending in \.json"):
        download_prefix("s3://bucket/none", tmp_path / "m", suffixes=(".json",))
    with pytest.raises(DataError, match=r"s3://no-such-bucket/m cannot be read: .*NoSuchBucket"):
        download_prefix("s3://no-such-bucket/m", tmp_path / "m", suffixes=(".json",))


def test_a_download_that_breaks_off_again_and_again_is_said(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*given: Any, **more: Any) -> None:
        raise RetriesExceededError(OSError("reset"))

    s3.put_object(Bucket="bucket", Key="there/RTE/train.json", Body=b"{}")
    monkeypatch.setattr(s3, "download_file", breaks)
    for module in ("store", "tasks"):
        monkeypatch.setattr(f"steps.{module}.s3_client", lambda: s3)
    with pytest.raises(DataError, match="s3://bucket/there/RTE cannot be read: Max Retries Exceeded"):
        download_prefix("s3://bucket/there/RTE", tmp_path / "m", suffixes=(".json",))
    with pytest.raises(DataError, match="s3://bucket/there cannot be read: Max Retries Exceeded"):
        load_task("s3://bucket/there", "rte")


def test_download_prefix_says_that_a_profile_is_not_there(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(DataError, match=r"s3://bucket/m cannot be read: .*\(elsewhere\) could not be found"):
        download_prefix("s3://bucket/m", tmp_path / "m", suffixes=(".json",))
