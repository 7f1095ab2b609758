"""What made a run, beside its inputs: code and environment, as plain records; and the run's `lineage.json`."""

import functools
import hashlib
import importlib.metadata
import io
import os
import platform
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINEAGE_FILE = "lineage.json"
"""Artifact of a flow's MLflow run: all that `start` knows of what the run is made from."""
ENVIRONMENT_FILE = "environment.json"
"""Artifact of a training's run: where the weights were made."""
_PACKAGES = ("fast_electra_core", "steps")
_ORIGINS = ("address", "digest", "tokenizer_digest", "registry", "version")


def code_version() -> dict[str, str]:
    """The tag `code.git_sha`: the commit of this file's checkout, with `-dirty` where files differ from it;
    outside a checkout the environment's FAST_ELECTRA_GIT_SHA; else `unknown`. Beside it `code.digest`, of the files of
    the packages alone, which holds where there is no commit, too."""
    digest = {"code.digest": code_digest(_own_files())}
    try:
        sha = git("rev-parse", "HEAD").decode().strip()
        is_dirty = bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet, or a disk that hangs
        return {"code.git_sha": os.environ.get("FAST_ELECTRA_GIT_SHA", "unknown"), **digest}
    return {"code.git_sha": f"{sha}-dirty" if is_dirty else sha, **digest}


def code_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Hex digest (16 characters) of (path, content) pairs, whatever their order."""
    lines = sorted(f"{path}:{hashlib.sha256(content).hexdigest()}" for path, content in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def code_digest_of(commit: str) -> str:
    """The digest of the packages as they are in a commit of this checkout.

    Raises:
        OSError, subprocess.SubprocessError: there is no checkout, or no such commit in it.
    """
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit, *_PACKAGES))) as archive:
        members = [member for member in archive.getmembers() if member.isfile() and _is_code(member.name)]
        return code_digest((member.name, _content(archive, member)) for member in members)


def git(*arguments: str) -> bytes:
    """What git says in this file's checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


def locked_packages(commit: str) -> dict[str, str]:
    """Name (lower case, with hyphens) -> version in requirements.lock as it is in a commit of this checkout.

    Raises:
        OSError, ValueError: there is no checkout, or no such commit or file in it.
    """
    try:
        text = git("show", f"{commit}:requirements.lock").decode()
    except subprocess.SubprocessError as error:
        raise ValueError(f"git show {commit}:requirements.lock: {error}") from error
    pins = [line.partition(";")[0].strip().partition("==") for line in text.splitlines()]
    return {name.partition("[")[0].lower().replace("_", "-"): version for name, _, version in pins if version}


def environment() -> dict[str, Any]:
    """Python, machine and installed packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": dict(_installed()),
    }


@functools.cache
def _installed() -> dict[str, str]:
    """The packages' versions, by name. To read the files of all takes a fifth of a second."""
    found = {each["Name"]: each["Version"] for each in (it.metadata for it in importlib.metadata.distributions())}
    return {name: found[name] for name in sorted(found, key=str.lower)}


def training_environment(device: str) -> dict[str, Any]:
    """The environment of a training on that device, with what its last bits depend on besides."""
    import torch

    is_gpu = device.startswith("cuda")
    return {
        **environment(),
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
        "cuda": torch.version.cuda if is_gpu else None,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def record_of(plan: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The record LINEAGE_FILE of a flow's run. given are the flow's parameters that were given; relative paths among
    them start from `folder`."""
    corpus = plan.get("corpus")
    return {
        "pathspec": plan["pathspec"],
        "folder": str(Path.cwd()),
        "given": {name: value for name, value in given.items() if value is not None},
        "config": plan["config"],
        "config_digest": plan["config_digest"],
        "corpus": {**_without_shards(corpus), "grows": "retrain" in plan} if corpus else None,
        "tokenizer_digest": plan["tokenizer_key"].rpartition("/")[2] if "tokenizer_key" in plan else None,
        "tasks": plan.get("tasks", {}),
        "candidates": [_origin(candidate) for candidate in plan.get("candidates", ())],
        **{role: _origin(plan[role]) for role in ("initial_model", "teacher", "model") if plan.get(role)},
        "code": plan["code"],
        "environment": environment(),
    }


def _without_shards(corpus: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in corpus.items() if name != "shards"}


def _origin(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in _ORIGINS if name in model}


def _own_files() -> Iterable[tuple[str, bytes]]:
    paths = (path for package in _PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    names = ((path, path.relative_to(ROOT).as_posix()) for path in paths)
    return ((name, path.read_bytes()) for path, name in names if _is_code(name))


def _is_code(name: str) -> bool:
    return name.endswith((".py", ".html"))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None, "only directories and links have none"
    return stream.read()


def _processor() -> str:
    """The processor's name where Linux says it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
