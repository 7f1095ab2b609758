"""What is taken of a model that a user names, from wherever it is, and what is said of one that cannot be."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HUB_HTTP_ERROR
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from fast_electra_core.errors import AuxiliaryError
from steps import model_source


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("the hub does not answer"),
        HUB_HTTP_ERROR("peer closed connection"),
        PermissionError("the cache is another's"),
    ],
)
def test_whatever_keeps_a_model_of_the_hub_away_is_said_with_its_name(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(model_source, "snapshot_download", snapshot_download)
    with pytest.raises(AuxiliaryError, match=rf"^hub:a/b could not be fetched from the hub: {error}\. Check the name"):
        model_source.download("hub:a/b", tmp_path, "", role="auxiliary")


def test_a_name_that_the_hub_cannot_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(AuxiliaryError, match=r"^hub:a b could not be fetched from the hub: Repo id must use"):
        model_source.download("hub:a b", tmp_path, "", role="auxiliary")


def test_a_folder_may_be_named_from_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_source.download("~/model", tmp_path / "x", "", role="model") == (tmp_path / "model", None)


@pytest.mark.parametrize(
    ("role", "flow"),
    [("auxiliary", "auxiliary"), ("distill_from", "auxiliary"), ("model", "pretrain"), ("initial_model", "pretrain")],
)
def test_where_no_folder_is_the_flow_that_makes_one_is_named(role: str, flow: str, tmp_path: Path) -> None:
    message = rf"^{role} 'nowhere' is not a folder\. .*; `python flows/{flow}_flow\.py run` makes one$"
    with pytest.raises(AuxiliaryError, match=message):
        model_source.download("nowhere", tmp_path, "", role=role)


def test_words_of_a_tokenizer_come_along_from_s3_and_pickles_do_not(s3: Any, tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors", "vocab.txt", "merges.txt", "pytorch_model.bin", "modeling.py")
    for name in names:
        s3.put_object(Bucket="bucket", Key=f"mine/{name}", Body=b"x")
    folder, version = model_source.download("s3://bucket/mine", tmp_path / "got", "", role="model")
    assert ({path.name for path in folder.iterdir()}, version) == (set(names[:4]), None)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"null", b'"electra"'])
def test_a_config_that_is_no_json_object_is_unreadable(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(AuxiliaryError, match=r"^model x has no readable config\.json: .* Give a folder with config"):
        model_source.read_config(tmp_path, what="model x")


def test_every_kind_of_pickle_is_called_one_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("a.bin", "b.pt", "c.pth", "d.pkl", "e.ckpt", "config.json", "f.h5"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AuxiliaryError, match=r"model x holds only pickles \(a\.bin, b\.pt, c\.pth, d\.pkl, e\.ckpt\),"):
        model_source.check_weights(tmp_path, what="model x")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    model_source.check_weights(tmp_path, what="model x")


def test_a_model_is_kept_by_what_its_config_computes_and_not_by_what_it_notes(tmp_path: Path) -> None:
    def key(**config: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return model_source.content_key("models", tmp_path, digest="d", tokenizer_digest="t")

    first = key(hidden_size=8, num_layers=2)
    digest = hashlib.sha256(b'{"hidden_size": 8, "num_layers": 2}').hexdigest()
    assert first == f"models/d-{digest[:8]}-t"
    assert key(num_layers=2, _name_or_path="/home/me", hidden_size=8, transformers_version="9") == first
    assert key(hidden_size=8, num_layers=3) != first


def test_a_weights_digest_is_of_names_dtypes_shapes_and_bytes_in_the_order_of_names(tmp_path: Path) -> None:
    save_file({"b": torch.tensor([[1.0], [2.0]])}, tmp_path / "1.safetensors")
    save_file(
        {"a": torch.tensor(3, dtype=torch.int64), "c": torch.tensor([1.0]).bfloat16()}, tmp_path / "2.safetensors"
    )
    content = b"a:torch.int64:()" + struct.pack("<q", 3)
    content += b"b:torch.float32:(2, 1)" + struct.pack("<2f", 1.0, 2.0)
    content += b"c:torch.bfloat16:(1,)" + b"\x80\x3f"  # the upper half of 1.0 as float32, 3f800000
    assert model_source.weights_digest(tmp_path) == hashlib.sha256(content).hexdigest()[:16]
