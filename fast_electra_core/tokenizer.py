"""WordPiece tokenizers: trained on a text, loaded from files, and identified by content.

Every tokenizer is transformers' fast kind, so that AutoTokenizer loads what `save_pretrained` wrote.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ElectraTokenizerFast, PreTrainedTokenizerFast

from fast_electra_core.encoding import in_batches
from fast_electra_core.errors import AuxiliaryError, DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
"""Characters a trained vocabulary may spend entries on; rarer ones become [UNK]."""

_BYTES_OF_SPACE = ("Ġ", "Ċ", "ĉ", "č")  # space, line feed, tab and carriage return, as byte-level BPE writes them
_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


def train_tokenizer(texts: Iterator[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """An uncased WordPiece tokenizer whose vocabulary is a pure function of `texts` and `vocab_size`.

    The text is kept in a temporary file between the two passes, so memory does not grow with it.

    Raises:
        DataError: if the texts hold no word.
    """
    backend = _wordpiece_backend()
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as spool:
        alphabet = _spool_and_count(texts, backend=backend, spool=spool)
        # One entry for the character itself and one for its continuation: half of the vocabulary at most.
        alphabet = alphabet[: min(MAX_ALPHABET, max(1, (vocab_size - len(SPECIAL_TOKENS)) // 4))]
        if not alphabet:
            raise DataError("a tokenizer cannot be trained: the corpus holds no words; give more text")
        spool.seek(0)
        backend.train_from_iterator(spool, trainer=_trainer(alphabet, backend=backend, vocab_size=vocab_size))
    return ElectraTokenizerFast(vocab=backend.get_vocab())


def load_tokenizer(folder_or_vocab: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder (tokenizer.json or vocab.txt) or in a vocab.txt. No remote code is ever run.

    Raises:
        DataError: if there is no such file, or it is not a tokenizer.
        AuxiliaryError: if the tokenizer lacks a special token that masked language models need.
    """
    path = Path(folder_or_vocab)
    if path.is_file():
        tokenizer = _from_vocabulary(path, settings={})
    elif (path / "tokenizer.json").is_file():
        tokenizer = _from_folder(path)
    elif (path / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(path / "vocab.txt", settings=_read_settings(path))
    else:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else ""
        found = f"the folder holds {held or 'nothing'}" if path.is_dir() else "there is no such file or folder"
        raise DataError(
            f"no tokenizer at {path}: {found}. Give a vocab.txt, or a folder with tokenizer.json "
            "(written by save_pretrained) or vocab.txt"
        )
    missing = [role for role in _ROLES if getattr(tokenizer, role) is None]
    if missing:
        raise AuxiliaryError(
            f"the tokenizer at {path} has no {', '.join(missing)}; a masked language model needs all of "
            f"{', '.join(_ROLES)}. Give the tokenizer of a masked language model"
        )
    return tokenizer


def num_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the highest id; more than the number of tokens where some ids are nobody's."""
    return int(max(tokenizer.get_vocab().values())) + 1


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hex digest (16 characters) of what the tokenizer does to text.

    Covers vocabulary, model, normaliser, pre-tokeniser, special tokens and what is put around a text and a pair; not
    padding or truncation state, names or paths. Equal digests mean equal ids for every text.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {part: state[part] for part in ("normalizer", "pre_tokenizer", "model")}
    content["special_tokens"] = {role: [getattr(tokenizer, role), getattr(tokenizer, f"{role}_id")] for role in _ROLES}
    content["added_tokens"] = sorted([token["id"], token["content"]] for token in state["added_tokens"])
    # As lists: alone, an empty second text is taken for none.
    content["around"] = [tokenizer(*texts)["input_ids"] for texts in (([""],), ([""], [""]))]
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def word_continuations(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.bool_]:
    """(V,) bool: entries of the vocabulary that go on with the word before them; added and special tokens do not.

    WordPiece: those with the prefix, "##". Byte-level BPE and SentencePiece: those that do not begin with the sign of a
    space ("Ġ", "▁") or another white space, so a comma goes on with the word before it. One entry a word: none.

    Raises:
        DataError: a tokenizer of another kind.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, split = state["model"], state["pre_tokenizer"] or {"type": None}
    parts = {part["type"]: part for part in split.get("pretokenizers", [split])}
    begins_with: tuple[str, ...]
    if model["type"] == "WordPiece":
        begins_with, is_continuation = (model["continuing_subword_prefix"],), True
    elif model["type"] == "WordLevel":
        begins_with, is_continuation = ("",), False
    elif "ByteLevel" in parts:
        begins_with, is_continuation = _BYTES_OF_SPACE, False
    elif "Metaspace" in parts:
        begins_with, is_continuation = (parts["Metaspace"]["replacement"],), False
    else:
        raise DataError(
            f"which tokens continue a word is not known for this {model['type']} tokenizer, only for WordPiece, "
            "byte-level BPE and SentencePiece. Give --masking tokens"
        )
    added, vocabulary = {token["id"] for token in state["added_tokens"]}, tokenizer.get_vocab()
    continues = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)
    for token, index in vocabulary.items():
        continues[index] = index not in added and token.startswith(begins_with) == is_continuation
    return continues


def _wordpiece_backend() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _spool_and_count(texts: Iterator[str], *, backend: Tokenizer, spool: IO[str]) -> list[str]:
    """Write the texts to `spool`, one a line; return their normalised characters, the most frequent first."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for batch in in_batches(texts):
        joined = "\n".join(" ".join(text.split()) for text in batch) + "\n"
        spool.write(joined)
        normalised = "".join(backend.normalizer.normalize_str(joined).split())
        points = np.frombuffer(normalised.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
        counts += np.bincount(points, minlength=len(counts))
    order = np.argsort(-counts, kind="stable")
    return [chr(point) for point in order[: np.count_nonzero(counts)]]


def _trainer(alphabet: list[str], *, backend: Tokenizer, vocab_size: int) -> trainers.WordPieceTrainer:
    """A trainer that gives the same vocabulary each time.

    Left alone, it breaks ties in the alphabet, and numbers the continuations, in the order of a randomly
    seeded hash map, and ties between merges follow those numbers: three runs on one text gave three
    vocabularies. So both are fixed beforehand, the continuations as if they were special tokens.
    """
    characters = sorted(alphabet)
    continuations = [f"##{character}" for character in characters if _continues_a_word(character, backend)]
    return trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )


def _continues_a_word(character: str, backend: Tokenizer) -> bool:
    """False for punctuation and Chinese characters, which are words of their own."""
    return len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{character}"))) == 1


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    _read_json(folder / "tokenizer.json", "model")
    try:
        # A folder without tokenizer_config.json or config.json ends in a ValueError here, remote code too.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise DataError(
            f"the tokenizer in {folder} cannot be loaded without running foreign code or further packages: "
            f"{error}. Save it with save_pretrained of a fast tokenizer"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"the tokenizer in {folder} is a {type(tokenizer).__name__}, not a fast one; "
            "save it again with a fast tokenizer of transformers"
        )
    return tokenizer


def _from_vocabulary(path: Path, *, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """WordPiece from vocab.txt; upper-case entries mean a cased vocabulary unless `settings` say otherwise.

    `ElectraTokenizerFast(vocab_file=...)` would silently yield nothing but [UNK]: the ids go in as a dict.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a vocabulary may hold other ends of lines as entries
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a vocabulary: byte {error.start} is not UTF-8. Give one token a line"
        ) from error
    vocabulary = {line: index for index, line in enumerate(lines) if line}
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise DataError(
            f"{path} is not a WordPiece vocabulary: {', '.join(missing)} missing among its {len(vocabulary)} "
            "entries. Give a vocab.txt with one token a line, or a folder written by save_pretrained"
        )
    is_cased = any(token != token.lower() for token in vocabulary if not token.startswith("["))
    known = {"do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length"}
    return ElectraTokenizerFast(
        vocab=vocabulary,
        **{"do_lower_case": not is_cased, **{key: settings[key] for key in known & settings.keys()}},
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path, *required: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Write the folder again with save_pretrained") from error
    if not isinstance(content, dict) or any(key not in content for key in required):
        raise DataError(f"{path} is not a tokenizer's file. Write the folder again with save_pretrained")
    return content
