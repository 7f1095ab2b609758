"""What the source must not do, whatever else it does; and that a search for secrets finds them where they hide."""

import ast
import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT
from planted import PLANTED, leaks, leaks_below

SOURCES = [
    path
    for folder in ("flows", "steps", "fast_electra_core", "benchmarks", "infra")
    for path in (ROOT / folder).rglob("*.py")
]
_UNPACKING = ("extractall", "extract", "unpack_archive")
_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Each call in the source: where it stands, the name that is called, the call."""
    assert len(SOURCES) > 80
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_code_that_a_model_brings_along_is_never_run() -> None:
    autos = [
        (where, {word.arg: ast.unparse(word.value) for word in call.keywords})
        for where, name, call in calls()
        if name.split(".")[-1] in ("from_pretrained", "from_config") and "Auto" in name
    ]
    assert len(autos) > 5
    assert [where for where, words in autos if words.get("trust_remote_code") != "False"] == []
    for where, _, call in calls():
        given = [ast.unparse(word.value) for word in call.keywords if word.arg == "trust_remote_code"]
        assert given in ([], ["False"]), where


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not names & _PICKLES, path
    for where, name, call in calls():
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in ("eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load"), where
        assert words.get("shell", "False") == "False" and words.get("allow_pickle", "False") == "False", where
        if name.startswith("subprocess."):
            assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), where  # a list, and no command line


def test_no_archive_is_unpacked_to_the_disk() -> None:
    assert [where for where, name, _ in calls() if name.split(".")[-1] in _UNPACKING] == []


def test_a_planted_secret_is_found_where_it_is_packed_and_where_it_is_not(tmp_path: Path) -> None:
    secret = PLANTED["AWS_SECRET_ACCESS_KEY"].encode()
    tar, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        member = tarfile.TarInfo("settings")
        member.size = len(secret)
        archive.addfile(member, io.BytesIO(secret))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("inner.gz", gzip.compress(b"x" + secret + b"x"))
    for data in (b"before " + secret, gzip.compress(secret), tar.getvalue(), packed.getvalue()):
        assert leaks("file", data) == ["AWS_SECRET_ACCESS_KEY"]
    assert leaks("file", b"nothing") == [] and leaks(PLANTED["HF_TOKEN"], b"") == ["HF_TOKEN"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.tgz").write_bytes(tar.getvalue())
    assert leaks_below(tmp_path) == {"a/b.tgz": ["AWS_SECRET_ACCESS_KEY"]}
