"""What has come to a corpus, gone from it or changed in it since a model saw it, by content and not by date."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fast_electra_core.errors import DataError
from fast_electra_core.text_shards import TextFile


class SeenFile(NamedTuple):
    """A file that a model has been trained on."""

    name: str
    num_bytes: int
    digest: str


class CorpusChanges(NamedTuple):
    """A corpus against what was seen; each list is sorted by name."""

    new: list[TextFile]
    """Content that was never seen, under a name that was not either."""
    changed: list[TextFile]
    """Content that was never seen, under a name whose content was another."""
    duplicates: list[TextFile]
    """Content that was seen under another name, or is that of another file here."""
    kept: list[TextFile]
    """Content that was seen under this name."""
    gone: list[str]
    """Names that were seen and are no longer there."""

    @property
    def unseen(self) -> list[TextFile]:
        """What there is to train on: new and changed files, by name."""
        return sorted([*self.new, *self.changed], key=lambda file: file.name)


def compare_corpus(found: Iterable[TextFile], seen: Sequence[SeenFile]) -> CorpusChanges:
    """Sort the files that are there by what was seen.

    A name may have been seen with several contents, one after the other: each counts as seen.

    Raises:
        DataError: the digests are of different kinds (SHA-256 of local files, ETags of S3 objects), so nothing could be
            found again.
    """
    files = sorted(found, key=lambda file: file.name)
    _check_kinds(files, seen)
    names_of: dict[str, set[str]] = {}
    for each in seen:
        names_of.setdefault(each.digest, set()).add(each.name)
    known_names = {each.name for each in seen}
    changes = CorpusChanges([], [], [], [], sorted(known_names - {file.name for file in files}))
    taken: set[str] = set()
    for file in files:
        names = names_of.get(file.digest, set())
        if file.name in names:
            changes.kept.append(file)
        elif names or file.digest in taken:
            changes.duplicates.append(file)
        else:
            taken.add(file.digest)
            (changes.changed if file.name in known_names else changes.new).append(file)
    return changes


def _check_kinds(files: Sequence[TextFile], seen: Sequence[SeenFile]) -> None:
    ours, theirs = ({":" in each.digest for each in side if each.digest} for side in (files, seen))
    if ours and theirs and not ours & theirs:
        kinds = {True: "ETags of S3 objects", False: "SHA-256 of files"}
        raise DataError(
            f"the text here is known by {kinds[ours.pop()]}, what the champion saw by {kinds[theirs.pop()]}: they "
            "cannot be compared, and all of it would count as new. Give the --corpus that the champion was trained "
            "from, or train a new one on this text with flows/pretrain_flow.py"
        )
