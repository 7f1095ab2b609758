"""Whether what a version was made from is still what it was: one check per recorded digest."""

import functools
import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_electra_core.config import RunConfig
from fast_electra_core.errors import DataError, FastElectraError, TrackingError
from steps import provenance, tracking
from steps.store import Store

Record = Mapping[str, Any]
OK, DIFFERS, GONE = "ok", "differs", "gone"
_EMBEDDED = ("sample", "pydocs", "train")


@dataclass(frozen=True)
class Check:
    """A recorded digest and what became of it: ok, differs, or gone, which is what cannot be checked."""

    what: str
    recorded: str
    verdict: str
    note: str = ""


def compare(what: str, recorded: Any, find: Callable[[], str]) -> Check:
    """find() gives the digest as it is now, or raises what says why it cannot be known."""
    if not recorded:
        return Check(what, "", GONE, "no digest was recorded")
    try:
        found = find()
    except (FastElectraError, OSError, subprocess.SubprocessError) as error:
        return Check(what, str(recorded), GONE, " ".join(str(error).split()))
    return Check(what, str(recorded), *((OK, "") if found == recorded else (DIFFERS, f"now {found}")))


def absolute(address: str, folder: str) -> str:
    """An address that a run was given, as it reads from any other folder; folder is where it was started."""
    if address in _EMBEDDED or "://" in address or address.startswith(("hub:", "models:/")):
        return address
    return str(Path(folder) / Path(address).expanduser())


def check_model(address: str, tags: Mapping[str, str]) -> list[Check]:
    """The files of a registered version: its weights and its tokenizer."""

    @functools.cache
    def digests() -> tuple[str, str, str]:
        from fast_electra_core.tokenizer import load_tokenizer, tokenizer_digest
        from steps.model_source import weights_digest

        with tempfile.TemporaryDirectory() as scratch:
            folder = tracking.download_model(address, Path(scratch) / "model")
            tokenizer = tokenizer_digest(load_tokenizer(folder)) if tags.get("tokenizer.digest") else ""
            return weights_digest(folder), tracking.files_digest(folder), tokenizer

    checks = [compare("weights.digest", own_digest(tags), lambda: digests()[0])] if own_digest(tags) else []
    checks.append(compare("model.sha256", tags.get("model.sha256"), lambda: digests()[1]))
    return [*checks, compare("tokenizer.digest", tags.get("tokenizer.digest"), lambda: digests()[2])]


def own_digest(tags: Mapping[str, str]) -> str | None:
    """The digest of a version's own weights; older auxiliaries have it under their own name alone."""
    is_auxiliary = "auxiliary.version" not in tags
    return tags.get("weights.digest") or (tags.get("auxiliary.digest") if is_auxiliary else None)


def check_source(what: str, address: str, digest: Any, record: Record) -> Check:
    """Weights that a run took from outside the registry: a folder, S3 or the hub."""

    def now() -> str:
        from steps.model_source import download, weights_digest

        with tempfile.TemporaryDirectory() as scratch:
            place = absolute(address, record["folder"])
            folder, _ = download(place, Path(scratch) / "model", tracking.connected_uri(), role="auxiliary")
            return weights_digest(folder)

    return compare(what, digest, now)


def check_members(what: str, recorded: Any, digests: Sequence[str | None]) -> Check:
    """The digest of what a version was made from is that of the versions it was made of, one or an ensemble."""

    def now() -> str:
        known = [digest for digest in digests if digest]
        if len(known) < len(digests):
            raise TrackingError("one of those that it was made of is in no registry, is gone from it, or has no digest")
        return known[0] if len(known) == 1 else hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]

    return compare(what, recorded, now)


def check_config(tags: Mapping[str, str], record: Record) -> Check:
    """The parameters that are shown are those that the run began with."""
    return compare("config.digest", tags.get("config.digest"), lambda: _config_digest(record))


def _config_digest(record: Record) -> str:
    return RunConfig.digest_of(dict(record["config"]))


def check_text(tags: Mapping[str, str], record: Record) -> list[Check]:
    """The text as a whole and each of its files, where they still lie at their address. Of a corpus that grows, other
    files beside them are no difference."""
    recorded = {file["name"]: file["digest"] for file in record["corpus"]["files"]}
    try:
        now = _files_now(record)
    except (FastElectraError, OSError) as error:
        why = " ".join(str(error).split())
        return [Check("corpus.digest", tags.get("corpus.digest", ""), GONE, why)]
    grows = record["corpus"].get("grows", False)
    if grows:
        now = {name: digest for name, digest in now.items() if name in recorded}
    more = sorted(set(now) - set(recorded))
    files = [
        compare(f"file {name}", digest, functools.partial(_digest_in, now, name)) for name, digest in recorded.items()
    ]
    files += [Check(f"file {name}", "", DIFFERS, "was not there") for name in more]

    def whole() -> str:
        if grows and len(now) < len(recorded):
            raise DataError("some of its files are no longer at the address of the corpus")
        return _content_digest(now)

    return [compare("corpus.digest", tags.get("corpus.digest"), whole), *files]


def _digest_in(files: Mapping[str, str], name: str) -> str:
    if name not in files:
        raise DataError("no longer at the address of the corpus")
    return files[name]


def _content_digest(files: Mapping[str, str]) -> str:
    from fast_electra_core.text_shards import content_digest

    return content_digest([[name, files[name]] for name in sorted(files)])


def _files_now(record: Record) -> dict[str, str]:
    from steps.corpus import list_files

    corpus = record["corpus"]
    kept = [file["path"] for file in corpus["files"] if file["path"].startswith("store://")]
    return list_files(corpus["address"], kept_at=kept[0] if kept else None, open_store=lambda: store_of(record))


def store_of(record: Record) -> Store:
    """The store that a run wrote to.

    Raises:
        DataError: it is a folder, and no longer there.
    """
    root = absolute(record["config"]["store"], record["folder"])
    if not root.startswith("s3://") and not Path(root).is_dir():
        raise DataError(f"the run's store {root} is no longer there")
    return Store(root)


def check_tasks(record: Record) -> list[Check]:
    """Each task that the model was scored on."""
    return [
        compare(f"task {task}", facts["digest"], functools.partial(_task_digest, task, record))
        for task, facts in record["tasks"].items()
    ]


def _task_digest(task: str, record: Record) -> str:
    from fast_electra_core.glue import summarise_task
    from steps.tasks import load_task

    config = record["config"]
    on_bad_row = "skip" if config["on_bad_text"] == "skip" else "error"
    glue = absolute(config["glue"], record["folder"])
    data = load_task(glue, task, on_bad_row=on_bad_row, with_test=config["test_predictions"])
    return str(summarise_task(data)["digest"])


def check_code(tags: Mapping[str, str]) -> list[Check]:
    """The commit is in this checkout, and the packages in it are those that ran."""
    named = tags.get("code.git_sha", "")
    sha = named.removesuffix("-dirty")
    is_there = compare("code.git_sha", named, lambda: named if _commit(sha) else "")
    digest = tags.get("code.digest")
    if is_there.verdict != OK or not digest:
        return [is_there]
    content = compare("code.digest", digest, lambda: provenance.code_digest_of(sha))
    if content.verdict == DIFFERS and named.endswith("-dirty"):
        note = "files differed from the commit when it ran, and are not kept"
        content = Check("code.digest", digest, GONE, note)
    return [is_there, content]


def _commit(sha: str) -> str:
    try:
        return provenance.git("rev-parse", "--verify", "--quiet", f"{sha}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError as error:
        raise DataError(f"no such commit in the checkout {provenance.ROOT}; `git fetch` may bring it") from error


def other_packages(environment: Record) -> list[str]:
    """What is installed here in another version, or not at all: `torch 2.12.1 (here 2.13.0)`."""
    here = provenance.environment()
    pairs: Iterable[tuple[str, str, str | None]] = [
        ("python", environment["python"], here["python"]),
        *((name, version, here["packages"].get(name)) for name, version in environment["packages"].items()),
    ]
    return [f"{name} {then} (here {now or 'missing'})" for name, then, now in pairs if then != now]
