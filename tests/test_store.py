"""The store: folders appear whole or not at all, in a local folder and in S3."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fast_electra_core.errors import ConfigError, DataError
from steps.store import Store, download_prefix


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


def test_putting_again_replaces_all_of_the_folder(store: Store, tmp_path: Path) -> None:
    store.put_folder(make_folder(tmp_path / "first", a="1", old="x"), "kind/name")
    store.put_folder(make_folder(tmp_path / "second", a="2"), "kind/name")
    assert contents(store.get_folder("kind/name")) == {"a": "2"}


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
    with pytest.raises(DataError, match="tokens/half is missing or incomplete; run the step that makes it again"):
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
    send = client.upload_file

    def upload_file(path: str, bucket: str, name: str) -> None:
        uploaded.append(name)
        send(path, bucket, name)

    monkeypatch.setattr(client, "upload_file", upload_file)
    monkeypatch.setattr(store, "_client", lambda: client)
    store.put_folder(make_folder(tmp_path / "local", **{"zzz": "1", "a": "2"}), "k/n")
    assert uploaded == ["p/k/n/a", "p/k/n/zzz", "p/k/n/.complete"]


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
