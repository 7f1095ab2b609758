"""What a retraining finds: the champion with all that it has seen, and what of the text is new to it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fast_electra_core.config import TrainingConfig
from fast_electra_core.corpus_changes import CorpusChanges, SeenFile, compare_corpus
from fast_electra_core.errors import DataError
from fast_electra_core.text_shards import Corpus, TextFile, corpus_of
from steps import tracking
from steps.corpus_record import read_record
from steps.register import MODEL_NAME
from steps.store import Store

Plain = dict[str, Any]
GENERATION_TAG = "retrain.generation"
"""Of a version that continues another one: how many such runs there were since the last one from scratch."""
TRIAL_TAG = "retrain.trial"
"""Of a version that RetrainFlow has made: digest of champion, new text and parameters, so that none is tried twice.
Where there was no champion, digests of the auxiliaries and the initial model stand in its place."""
_NO_MATTER = ("tracking_uri", "experiment", "store", "corpus", "lock_minutes", "wait_for_lock_seconds")
_AFRESH = "train a new one on this text: python flows/pretrain_flow.py run"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """The registered version that is continued."""

    info: Plain
    """tracking.model_version_info's."""
    record: Plain
    """corpus_record.record_of's: every file and shard that it has seen."""
    shard_keys: list[str]
    """Those of the shards that are in the store, in the order in which they were seen."""

    @property
    def address(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.info['name']}/{self.info['version']}"

    @property
    def generation(self) -> int:
        """How many runs have continued one another up to this version."""
        return int(self.info["tags"].get(GENERATION_TAG, 0))

    @property
    def seen(self) -> list[SeenFile]:
        """The files that it was trained on."""
        return [SeenFile(**file) for file in self.record["files"]]


def find_champion(store: Store) -> Champion | None:
    """The champion at the connected server; None where there is none yet.

    Raises:
        DataError: what it has seen is not known, or nothing of that is in the store.
    """
    number = tracking.aliases(MODEL_NAME).get(tracking.CHAMPION)
    if number is None:
        return None
    info = tracking.model_version_info(f"models:/{MODEL_NAME}/{number}")
    what, record = f"the champion {MODEL_NAME} {number}", read_record(info)
    if record is None:
        raise DataError(f"{what} does not say which files it has seen, as versions of long ago do not; {_AFRESH}")
    keys = [shard["key"] for shard in record["shards"]]
    there = [key for key in keys if store.has(key)]
    if not there:
        raise DataError(
            f"nothing of the text that {what} has seen is in the store {store.root}, so it can be neither replayed nor "
            f"scored. Give the --store of its run, or {_AFRESH}"
        )
    if len(there) < len(keys):
        _logger.warning("%d of %d token shards of old text are gone from the store", len(keys) - len(there), len(keys))
    return Champion(info, record, there)


def changes_of(corpus: Corpus, champion: Champion | None) -> CorpusChanges:
    """The corpus against what the champion has seen; without one all is new, but for files that are there twice.

    Raises:
        DataError: the champion's text was kept elsewhere, so that nothing could be found again.
    """
    return compare_corpus((TextFile(**file) for file in corpus.files), champion.seen if champion else [])


def unseen_part(corpus: Corpus, changes: CorpusChanges, config: TrainingConfig) -> Corpus:
    """What there is to train on, as a corpus of its own, cut as resolve_corpus would."""
    return corpus_of(corpus.address, changes.unseen, shard_bytes=max(1, int(config.shard_megabytes * 1e6)))


def names_of(changes: CorpusChanges) -> dict[str, list[str]]:
    """The files' names by what became of them."""
    return {
        kind: [each if isinstance(each, str) else each.name for each in files]
        for kind, files in changes._asdict().items()
    }


def earlier_trial(trial: str) -> Plain | None:
    """The version that the same run has made before, once it was decided upon; None if there is none."""
    from steps.promotion import decided

    for each in tracking.find_versions(TRIAL_TAG, trial):
        version = tracking.model_version_info(f"models:/{each['name']}/{each['version']}")
        if decided(version) is not None:
            return version
    return None


def trial_of(champion: Champion, corpus: Mapping[str, Any], config: TrainingConfig) -> str:
    """A digest of what a run that continues the champion is a function of."""
    return TrainingConfig.digest_of(
        {"champion": champion.address, "corpus": corpus["digest"], "config": _tried(config)}
    )


def first_trial_of(plan: Mapping[str, Any], config: TrainingConfig) -> str:
    """The same of a first model's plan (training_plan). What an address of the config meant then, another may have
    taken the place of since: it goes by content."""
    initial_model = plan["initial_model"]
    return TrainingConfig.digest_of(
        {
            "auxiliaries": [candidate["digest"] for candidate in plan["candidates"]],
            "initial_model": initial_model["digest"] if initial_model else None,
            "corpus": plan["corpus"]["digest"],
            "config": _tried(config),
        }
    )


def _tried(config: TrainingConfig) -> Plain:
    """All parameters but those that make no other model: addresses of what is the same, and waiting."""
    return {name: value for name, value in config.to_dict().items() if name not in _NO_MATTER}
