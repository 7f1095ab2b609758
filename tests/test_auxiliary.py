"""Candidates for the auxiliary: what is refused and why, how one is chosen, and that it does not move."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_text
from safetensors.torch import load_file, save_file
from toys import change_tensors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fast_electra_core.errors import AuxiliaryError, ConfigError, DataError
from fast_electra_core.tokenizer import train_tokenizer
from steps.auxiliary import fetch_candidates, load_masked_lm, score_candidate
from steps.config import resolve_pretrain
from steps.corpus import resolve_corpus
from steps.frozen import check_frozen, choose, record_of
from steps.model_source import weights_digest
from steps.store import Store
from steps.tokenization import tokenize_shard

SHAPE = {
    "embedding_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MAIN = {"preset": "tiny", "heldout_fraction": 0.1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def good(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that can serve, with a model at its random start."""
    return make_candidate(tmp_path_factory.mktemp("candidates") / "good", text)


def make_candidate(folder: Path, text: Path, *, vocab_size: int = 300, seed: int = 0, **shape: Any) -> Path:
    tokenizer = train_tokenizer(iter(text.read_text().split("\n\n")), vocab_size=vocab_size)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = ElectraConfig(**{**SHAPE, "vocab_size": len(tokenizer), **shape})
    ElectraForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of the good folder to spoil."""
    return Path(shutil.copytree(good, tmp_path / "candidate"))


def fetch(store: Store, *folders: Path | str, **changes: Any) -> list[dict[str, Any]]:
    given = {**MAIN, "auxiliary": ",".join(map(str, folders)), **changes}
    return fetch_candidates(resolve_pretrain(given), store)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# What is refused


def test_a_good_candidate_is_copied_into_the_store_by_content(good: Path, store: Store) -> None:
    (candidate,) = fetch(store, good)
    assert candidate["address"] == str(good)
    assert candidate["digest"] == weights_digest(good) == weights_digest(store.get_folder(candidate["key"]))
    assert store.has(f"tokenizers/{candidate['tokenizer_digest']}")
    assert candidate["registry"] is None


def without_head(folder: Path) -> None:
    ElectraModel(ElectraConfig.from_pretrained(folder)).save_pretrained(folder)


def with_pickles_alone(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_an_embedding(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("electra.embeddings.word_embeddings.weight"))


def of_another_width(folder: Path) -> None:
    change_config(folder, hidden_size=32)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


SPOILED: list[Any] = [
    pytest.param(without_head, "has no masked-LM head: its config names ElectraModel", id="no head"),
    pytest.param(lambda f: change_config(f, architectures=None), "its config names no class", id="no class"),
    pytest.param(
        lambda f: change_config(f, model_type="gpt2"),
        r"is of type 'gpt2'; those that can serve are .*electra",
        id="gpt2",
    ),
    pytest.param(
        with_pickles_alone,
        r"holds only pickles \(pytorch_model\.bin\), which are never loaded; save it as",
        id="pickle",
    ),
    pytest.param(
        lambda f: (f / "model.safetensors").unlink(), "holds no weights; save it as safetensors", id="no weights"
    ),
    pytest.param(
        lambda f: change_config(f, auto_map={"AutoModel": "code.Model"}),
        r"wants to run code of its own \(auto_map\); remote code is never run",
        id="remote code",
    ),
    pytest.param(
        lambda f: change_config(f, max_position_embeddings=31),
        "has 31 positions, fewer than sequence_length 32",
        id="positions",
    ),
    pytest.param(cut_short, "cannot be loaded", id="cut short"),
    pytest.param(without_an_embedding, r"lacks weights of its masked-LM|cannot be loaded", id="weights missing"),
    pytest.param(of_another_width, "cannot be loaded|lacks weights", id="other width"),
    pytest.param(without_tokenizer, "comes without a usable tokenizer", id="no tokenizer"),
    pytest.param(
        lambda f: change_config(f, vocab_size=20),
        "has logits for 20 tokens, but its tokenizer has",
        id="small vocabulary",
    ),
    pytest.param(lambda f: (f / "config.json").write_text("{"), "has no readable config.json", id="broken config"),
    pytest.param(lambda f: (f / "config.json").unlink(), "has no readable config.json", id="no config"),
]


@pytest.mark.parametrize("spoil, message", SPOILED)
def test_a_model_that_cannot_serve_is_refused_with_the_reason(
    spoil: Callable[[Path], object], message: str, copy: Path, store: Store
) -> None:
    spoil(copy)
    with pytest.raises(AuxiliaryError, match=message) as caught:
        fetch(store, copy)
    assert str(copy) in str(caught.value)
    assert store.list_keys("auxiliaries") == []


def replace_model(folder: Path, model_class: Any, config_class: Any, **more: Any) -> Any:
    """Another model of random weights in the place of the folder's, for the same tokenizer."""
    old = json.loads((folder / "config.json").read_text())
    shape = {name: value for name, value in SHAPE.items() if name != "embedding_size"}
    model = model_class(config_class(**shape, vocab_size=old["vocab_size"], **more)).eval()
    model.save_pretrained(folder)
    return model


RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}


@pytest.mark.parametrize(
    "model_class, config_class, more, usable",
    [
        (BertForMaskedLM, BertConfig, {}, 20),
        (RobertaForMaskedLM, RobertaConfig, {}, 18),
        (RobertaForMaskedLM, RobertaConfig, {"pad_token_id": 0}, 19),
        (DebertaForMaskedLM, DebertaConfig, {}, 20),
        (DebertaV2ForMaskedLM, DebertaV2Config, {"legacy": False}, 20),
        (DebertaForMaskedLM, DebertaConfig, RELATIVE, None),
        (DebertaV2ForMaskedLM, DebertaV2Config, RELATIVE, None),
    ],
)
def test_a_candidate_serves_sequences_as_long_as_its_positions_reach_and_no_longer(
    model_class: Any, config_class: Any, more: dict[str, Any], usable: int | None, copy: Path, store: Store
) -> None:
    """Of 20 positions RoBERTa's count from pad + 1; a DeBERTa that knows distances alone has no limit."""
    model = replace_model(copy, model_class, config_class, max_position_embeddings=20, **more)
    longest = usable or 100
    assert fetch(store, copy, sequence_length=longest)
    ids = torch.full((1, longest + 1), 7)
    assert model(input_ids=ids[:, 1:]).logits.shape[1] == longest
    if usable is not None:
        with pytest.raises(AuxiliaryError, match=f"has {usable} positions, fewer than sequence_length {usable + 1}"):
            fetch(store, copy, sequence_length=usable + 1)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)


def test_a_deberta_with_its_own_head_and_a_config_that_says_otherwise_is_told_what_to_write(
    copy: Path, store: Store
) -> None:
    replace_model(copy, DebertaForMaskedLM, DebertaConfig, legacy=False)
    assert fetch(store, copy)
    change_config(copy, legacy=None)  # as published before transformers knew of the two
    with pytest.raises(AuxiliaryError, match=r'lacks weights of its masked-LM: .*put "legacy": false into its config'):
        fetch(store, copy)


def test_pickles_beside_safetensors_are_left_behind(copy: Path, store: Store) -> None:
    torch.save({}, copy / "pytorch_model.bin")
    (copy / "code.py").write_text("raise SystemExit")
    (candidate,) = fetch(store, copy)
    suffixes = {path.suffix for path in store.get_folder(candidate["key"]).iterdir() if path.name != ".complete"}
    assert suffixes <= {".json", ".safetensors", ".txt"}


def test_a_folder_that_is_not_there_is_said_with_the_ways_to_name_one(store: Store, tmp_path: Path) -> None:
    with pytest.raises(
        AuxiliaryError, match=r"none' is not a folder\. Give models:/NAME@ALIAS, .*auxiliary_flow\.py run"
    ):
        fetch(store, tmp_path / "none")


def test_an_s3_prefix_without_a_model_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with pytest.raises(DataError, match="s3://bucket/model cannot be read"):
        fetch(store, "s3://bucket/model")


def test_candidates_with_different_tokenizers_are_refused(good: Path, text: Path, store: Store, tmp_path: Path) -> None:
    other = make_candidate(tmp_path / "other", text, vocab_size=60)
    with pytest.raises(
        AuxiliaryError, match=r"candidates must share one tokenizer, by content: .*/other has [0-9a-f]{16}"
    ):
        fetch(store, good, other)


@pytest.mark.parametrize(
    "warm_start, fitting",
    [
        ("embeddings", "--architecture electra --embedding_size 16"),
        (
            "layers",
            "--architecture electra --embedding_size 16 --hidden_size 16 --intermediate_size 32 --num_layers 1 or more",
        ),
    ],
)
def test_a_candidate_that_a_warm_start_cannot_take_over_is_named_with_the_shape_that_would_fit(
    warm_start: str, fitting: str, good: Path, store: Store
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^auxiliary {good}: warm_start does not fit: .* Give {fitting}, or --warm_start none$"
    ):
        fetch(store, good, warm_start=warm_start)  # 16 wide, the main model 32
    flags = dict(re.findall(r"--(\w+_size) (\d+)", fitting))
    assert fetch(store, good, warm_start=warm_start, **{name: int(value) for name, value in flags.items()})


def test_the_digest_is_of_the_weights_and_not_of_how_files_cut_them(copy: Path, tmp_path: Path) -> None:
    whole = weights_digest(copy)
    cut = Path(shutil.copytree(copy, tmp_path / "cut"))
    tensors = load_file(cut / "model.safetensors")
    (cut / "model.safetensors").unlink()
    for number, name in enumerate(tensors):
        save_file({name: tensors[name]}, cut / f"part-{number}.safetensors")
    assert weights_digest(cut) == whole
    change_tensors(copy, lambda tensors: tensors["generator_lm_head.bias"][3].add_(1e-7))
    assert weights_digest(copy) != whole


# How one is chosen


@pytest.fixture(scope="module")
def better(text: Path, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good candidate with logits that favour the 48 words of the text and the full stop: by far the lower loss."""
    folder = Path(shutil.copytree(good, tmp_path_factory.mktemp("candidates") / "better"))
    words = sorted(set(text.read_text().replace(".", " .").split()))
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(words)
    assert len(words) == 49
    change_tensors(folder, lambda tensors: tensors["generator_lm_head.bias"].index_fill_(0, torch.tensor(ids), 9.0))
    return folder


@pytest.fixture(scope="module")
def dear(text: Path, better: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As good as the better one, but larger than the main model."""
    folder = make_candidate(
        tmp_path_factory.mktemp("candidates") / "dear",
        text,
        embedding_size=16,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
    )
    bias = load_file(better / "model.safetensors")["generator_lm_head.bias"]
    change_tensors(folder, lambda tensors: tensors["generator_lm_head.bias"].copy_(bias + 1.0))
    return folder


class Scorer:
    """Scores folders on the text, as the flow does."""

    def __init__(self, text: Path, store: Store) -> None:
        self._text, self._store = text, store

    def __call__(self, *folders: Path, **changes: Any) -> list[dict[str, Any]]:
        config = resolve_pretrain({**MAIN, "auxiliary": ",".join(map(str, folders)), **changes})
        candidates = fetch_candidates(config, self._store)
        corpus = resolve_corpus(str(self._text), store=self._store, text_field="text", shard_megabytes=1.0)
        key = f"tokenizers/{candidates[0]['tokenizer_digest']}"
        shards = [
            tokenize_shard(shard, config.to_dict(), tokenizer_key=key, store=self._store)["key"]
            for shard in corpus.shards
        ]
        return [score_candidate(each, config.to_dict(), shard_keys=shards, store=self._store) for each in candidates]


@pytest.fixture
def score(text: Path, store: Store) -> Scorer:
    return Scorer(text, store)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_candidate_with_the_lower_masked_loss_is_chosen(
    order: tuple[int, int], good: Path, better: Path, score: Scorer
) -> None:
    folders = [good, better]
    scored = score(*(folders[index] for index in order))
    chosen = choose(scored)
    assert chosen["address"] == str(better)
    (other,) = [each for each in scored if each not in chosen["members"]]
    # At its random start a model is about as good as a uniform guess over the vocabulary; the better one over 49.
    vocab_size = json.loads((good / "config.json").read_text())["vocab_size"]
    assert other["masked_loss"] == pytest.approx(math.log(vocab_size), abs=0.1)
    assert chosen["masked_loss"] == pytest.approx(math.log(49), abs=0.1)
    assert chosen["unigram_loss"] == scored[0]["unigram_loss"] == scored[1]["unigram_loss"]


def test_the_first_of_two_equals_is_chosen(good: Path, copy: Path, score: Scorer) -> None:
    assert choose(score(copy, good))["address"] == str(copy)


def test_a_candidate_that_is_too_dear_is_passed_over_with_the_reason(good: Path, dear: Path, score: Scorer) -> None:
    scored = score(dear, good, max_auxiliary_fraction=0.75)
    assert scored[0]["masked_loss"] < scored[1]["masked_loss"]  # it would have won
    assert scored[0]["reason"].startswith("too dear: ")
    assert scored[0]["reason"].endswith("at most 0.75 (max_auxiliary_fraction)")
    assert not scored[0]["ok"]
    assert choose(scored)["address"] == str(good)


def test_the_price_limit_is_the_users(dear: Path, good: Path, score: Scorer) -> None:
    fraction = score(dear, max_auxiliary_fraction=100.0)[0]["flops_fraction"]
    assert choose(score(dear, good, max_auxiliary_fraction=fraction * 1.01))["address"] == str(dear)


def test_without_an_eligible_candidate_each_ones_reason_is_said(good: Path, dear: Path, score: Scorer) -> None:
    reason = {"ok": False, "reason": "too dear"}
    scored = [{**each, **reason} for each in score(dear, good, max_auxiliary_fraction=100.0)]
    with pytest.raises(
        AuxiliaryError, match=rf"no candidate can serve as auxiliary: {dear}: too dear.*; {good}: too dear"
    ):
        choose(scored)


def test_where_all_are_too_dear_the_start_says_so_and_what_would_do(good: Path, dear: Path, score: Scorer) -> None:
    """Before any text is tokenized."""
    cheap, both = (score(*folders, max_auxiliary_fraction=100.0) for folders in ((good,), (dear, good)))
    least, total = cheap[0]["flops_fraction"], sum(each["flops_fraction"] for each in both)
    with pytest.raises(AuxiliaryError, match=rf"; {good}: {least:.2f}; at most 0.001 .*_fraction {ceiled(least)}$"):
        score(dear, good, max_auxiliary_fraction=0.001)
    with pytest.raises(AuxiliaryError, match=rf"too dear, 2 of them together: .*_fraction {ceiled(total)}$"):
        score(dear, good, max_auxiliary_fraction=0.75, ensemble_size=2)
    assert len(score(dear, good, max_auxiliary_fraction=float(ceiled(total)), ensemble_size=2)) == 2


def ceiled(fraction: float) -> str:
    """To two digits, so that it is enough."""
    return f"{math.ceil(100 * fraction) / 100:g}"


# That it does not move


def test_scoring_leaves_every_weight_as_it_was(better: Path, score: Scorer, store: Store) -> None:
    (scored,) = score(better)
    check_frozen(record_of([scored]), store)
    assert scored["digest"] == weights_digest(better)


def test_a_weight_that_moves_by_a_bit_is_noticed(better: Path, score: Scorer, store: Store) -> None:
    (scored,) = score(better)
    folder = store.get_folder(scored["key"])
    change_tensors(folder, lambda tensors: tensors["generator_lm_head.bias"][:1].nextafter_(torch.tensor(1e9)))
    with pytest.raises(
        AuxiliaryError, match=r"has moved: its weights' digest was [0-9a-f]{16}, now it is [0-9a-f]{16}"
    ):
        check_frozen(record_of([scored]), store)


def test_a_stored_model_loads_with_the_weights_of_its_file(good: Path) -> None:
    model = load_masked_lm(good)
    saved = load_file(good / "model.safetensors")
    loaded = model.state_dict()
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name
