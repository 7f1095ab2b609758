"""Documents to token ids, in batches, by the `tokenizers` library alone.

Neither torch nor transformers: they would take several times as long to import as a small shard takes to make, once in
each task of a fan-out.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fast_electra_core.errors import DataError

BATCH_CHARACTERS = 1 << 20
"""Text held in memory at once."""
BATCH_DOCUMENTS = 2048


class DocumentEncoder:
    """What text becomes by the tokenizer in a folder that `save_pretrained` of a fast tokenizer has written."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder's files are damaged, or do not agree on what separates documents or is
        unknown."""
        self._folder = folder
        try:
            self._backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            separator, unknown = settings["sep_token"], settings["unk_token"]
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {error}. Delete the folder and run "
                "again"
            ) from error
        self.separator_id, self.unknown_id = self._id_of(separator), self._id_of(unknown)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)

    def _id_of(self, token: str | dict[str, str]) -> int:
        content = token if isinstance(token, str) else token["content"]
        found = self._backend.token_to_id(content)
        if found is None:
            raise DataError(
                f"the tokenizer in {self._folder} has no entry for its special token {content!r}. Save it again with "
                "save_pretrained"
            )
        return found

    def encode(self, documents: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """encode_documents by this tokenizer."""
        return encode_documents(self._backend, documents)


def encode_documents(backend: Tokenizer, documents: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
    """The token ids of each document, in order, without [CLS] and [SEP]; an array of length 0 for no tokens.

    A special token that is spelled out in the text, say "[MASK]", is encoded as ordinary characters.
    The tokenizer given is not changed; memory holds one batch of at most about a million characters.
    """
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for batch in in_batches(documents):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.uint32)


def in_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents, as many at once as BATCH_CHARACTERS and BATCH_DOCUMENTS let."""
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
