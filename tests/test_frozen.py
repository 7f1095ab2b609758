"""The frozen auxiliary, one candidate or an ensemble: chosen by the rule, priced as a whole, named by all its parts."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_text
from safetensors.torch import load_file, save_file
from toys import electra_config
from transformers import ElectraForMaskedLM

from fast_electra_core.batches import make_batch
from fast_electra_core.config import PretrainConfig
from fast_electra_core.curriculum import Smoothing
from fast_electra_core.data import TokenDataset
from fast_electra_core.errors import AuxiliaryError, ConfigError
from fast_electra_core.evaluation import MaskedScores, unigram_counts
from fast_electra_core.method_building import build_frozen, build_model_free
from fast_electra_core.proposals import FrozenMaskedLm
from fast_electra_core.tokenizer import load_tokenizer, train_tokenizer
from steps.auxiliary import fetch_candidates, load_masked_lm, score_candidate
from steps.config import resolve_pretrain
from steps.corpus import resolve_corpus
from steps.dataset import open_dataset
from steps.frozen import check_frozen, choose, load_members, record_of, score_together
from steps.store import Store
from steps.tokenization import tokenize_shard
from steps.trace import auxiliary_tags


def candidate(name: str, loss: float, fraction: float = 0.2, *, reason: str = "") -> dict[str, Any]:
    """What scoring says of one."""
    return {
        "address": name, "key": f"auxiliaries/{name}", "digest": name * 16, "registry": None, "masked_loss": loss,
        "flops_per_token": 1000 * fraction, "flops_fraction": fraction, "num_parameters": 7,
        "seconds_per_1k_tokens": 0.5, "discriminator_flops_per_token": 1000.0, "ok": not reason, "reason": reason,
    }  # fmt: skip


def names(frozen: dict[str, Any]) -> list[str]:
    return [member["address"] for member in frozen["members"]]


def test_the_members_are_the_best_in_the_order_of_their_losses() -> None:
    scored = [candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0), candidate("d", 0.5, reason="too dear")]
    assert names(choose(scored, ensemble_size=2)) == ["b", "c"]
    assert names(choose(scored, ensemble_size=3)) == ["b", "c", "a"]


def test_the_price_limit_is_of_all_members_together() -> None:
    scored = [candidate("a", 1.0, 0.4), candidate("b", 2.0, 0.5), candidate("c", 3.0, 0.3)]
    assert names(choose(scored, ensemble_size=2, max_auxiliary_fraction=0.9)) == ["a", "b"]
    assert names(choose(scored, ensemble_size=2, max_auxiliary_fraction=0.75)) == ["a", "c"], "b would make it 0.9"
    message = (
        r"no 2 candidates fit together into 0\.6 of the .*: a: 0\.40; b: 0\.50; c: 0\.30\. Give a larger --max_aux"
    )
    with pytest.raises(AuxiliaryError, match=message):
        choose(scored, ensemble_size=2, max_auxiliary_fraction=0.6)


def test_the_record_of_one_is_its_own() -> None:
    only = candidate("a", 1.0)
    assert record_of([only]) == {**only, "members": [only]}


def test_the_record_of_several_has_what_they_cost_together_and_a_digest_of_all() -> None:
    members = [candidate("a", 1.0, 0.4), candidate("b", 2.0, 0.1)]
    record = record_of(members)
    assert record["flops_per_token"] == 500.0
    assert record["flops_fraction"] == 0.5
    assert record["num_parameters"] == 14
    assert record["discriminator_flops_per_token"] == 1000.0
    assert record["address"] == "a,b"
    assert record["digest"] == hashlib.sha256(f"{'a' * 16}\n{'b' * 16}".encode()).hexdigest()[:16]
    digests = {record_of(made)["digest"] for made in (members, members[:1], members[1:], [members[0]] * 2)}
    assert len(digests) == 4


def test_the_tags_name_every_member() -> None:
    registered = candidate("a", 1.0) | {"registry": {"name": "fast-electra-auxiliary", "version": "3"}}
    record = record_of([registered, candidate("b", 2.0)])
    assert auxiliary_tags(record) == {
        "auxiliary.digest": record["digest"],
        "auxiliary.address": "a,b",
        "auxiliary.version": "fast-electra-auxiliary/3,not registered",
    }


# With real weights


class Place:
    """A store with text and two candidates of different weights."""

    def __init__(self, folder: Path) -> None:
        text = write_text(folder / "text.txt", num_documents=60)
        tokenizer = train_tokenizer(iter(text.read_text().split("\n\n")), vocab_size=300)
        for seed, name in enumerate(("a", "b")):
            tokenizer.save_pretrained(folder / name)
            torch.manual_seed(seed)
            model = ElectraForMaskedLM(electra_config(len(tokenizer), max_position_embeddings=512))
            with torch.no_grad():
                model.generator_lm_head.bias.add_(3 * torch.randn(len(tokenizer)))
            model.save_pretrained(folder / name)
        self.folder = folder
        self.store = Store(str(folder / "store"))
        self.config = self.configured(ensemble_size=2)
        self.candidates = fetch_candidates(self.config, self.store)
        self.tokenizer_key = f"tokenizers/{self.candidates[0]['tokenizer_digest']}"
        corpus = resolve_corpus(str(text), store=self.store, text_field="text", shard_megabytes=1.0)
        plain = self.config.to_dict()
        self.shard_keys = [
            tokenize_shard(shard, plain, tokenizer_key=self.tokenizer_key, store=self.store)["key"]
            for shard in corpus.shards
        ]
        self.scored = [
            score_candidate(each, plain, shard_keys=self.shard_keys, store=self.store) for each in self.candidates
        ]

    def configured(self, **changes: Any) -> Any:
        addresses = ",".join(str(self.folder / name) for name in ("a", "b"))
        return resolve_pretrain({"preset": "tiny", "heldout_fraction": 0.1, "auxiliary": addresses, **changes})

    def dataset(self, part: str) -> TokenDataset:
        return open_dataset(
            part, self.config, shard_keys=self.shard_keys, tokenizer_key=self.tokenizer_key, store=self.store
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def test_an_ensemble_is_scored_by_the_mean_of_its_members_probabilities(place: Place) -> None:
    frozen = choose(place.scored, ensemble_size=2)
    scored = score_together(frozen, place.config, shard_keys=place.shard_keys, store=place.store)
    models = [load_masked_lm(Path(address)) for address in names(frozen)]
    heldout = place.dataset("heldout")
    sequence = torch.arange(min(len(heldout), 256))
    batch = make_batch(heldout, sequence, torch.zeros_like(sequence), mask_fraction=0.15, seed=20_231_011)
    masked = batch.input_ids.masked_fill(batch.is_selected, heldout.special_ids.mask)
    with torch.no_grad():
        mean = torch.stack([model.eval()(input_ids=masked).logits.double().softmax(-1) for model in models]).mean(0)
    right = mean.gather(2, batch.input_ids[..., None])[..., 0][batch.is_selected]
    assert scored["masked_loss"] == pytest.approx(-right.log().mean().item(), rel=1e-4)
    assert scored["masked_loss"] < np.mean([each["masked_loss"] for each in frozen["members"]])
    is_right = (mean.argmax(-1) == batch.input_ids)[batch.is_selected]
    assert scored["masked_accuracy"] == pytest.approx(is_right.double().mean().item())


def test_a_single_auxiliary_is_not_scored_again(place: Place) -> None:
    frozen = choose(place.scored)
    assert score_together(frozen, place.config, shard_keys=[], store=place.store) is frozen


def test_the_members_sample_together(place: Place) -> None:
    frozen = choose(place.scored, ensemble_size=2)
    members = load_members(frozen, place.store)
    proposal = build_frozen(place.config, members, place.dataset("train"), counts=lambda size: np.zeros(size, np.int64))
    assert isinstance(proposal, FrozenMaskedLm)
    ours = [model.generator_lm_head.bias for model in proposal.models]
    theirs = [load_file(Path(address) / "model.safetensors")["generator_lm_head.bias"] for address in names(frozen)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_every_member_is_checked_to_be_what_was_scored(place: Place, tmp_path: Path) -> None:
    frozen = choose(place.scored, ensemble_size=2)
    check_frozen(frozen, place.store)
    last = frozen["members"][1]
    path = place.store.get_folder(last["key"]) / "model.safetensors"
    before, tensors = path.read_bytes(), load_file(path)
    tensors["generator_lm_head.bias"][:1].nextafter_(torch.tensor(1e9))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AuxiliaryError, match=f"the frozen auxiliary {last['address']} has moved: its weights' digest"):
        check_frozen(frozen, place.store)
    path.write_bytes(before)


def test_members_of_different_vocabularies_are_refused_in_start(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    load_tokenizer(place.folder / "a").save_pretrained(folder)
    size = place.candidates[0]["vocab_size"]
    ElectraForMaskedLM(electra_config(size + 6, max_position_embeddings=512)).save_pretrained(folder)
    given = {"auxiliary": f"{place.folder / 'a'},{folder}"}
    assert len(fetch_candidates(place.configured(**given), place.store)) == 2
    with pytest.raises(
        AuxiliaryError, match=rf"must have logits for equally many tokens, got .*: {size}, .*: {size + 6}"
    ):
        fetch_candidates(place.configured(**given, ensemble_size=2), place.store)


def test_a_truncation_to_the_whole_vocabulary_is_refused_in_start(place: Place) -> None:
    size = place.candidates[0]["vocab_size"]
    assert fetch_candidates(place.configured(top_k=size - 1), place.store)
    with pytest.raises(
        ConfigError, match=f"top_k must be below the {size} tokens of the vocabulary, got {size}; or le"
    ):
        fetch_candidates(place.configured(top_k=size), place.store)


@pytest.mark.parametrize("method", ["uniform", "unigram", "bigram", "mlm"])
def test_an_auxiliary_that_has_no_work_is_never_too_dear(method: str, place: Place) -> None:
    config = place.configured(method=method).to_dict() | {"max_auxiliary_fraction": 1e-9}
    assert fetch_candidates(PretrainConfig(**config), place.store)
    scored = score_candidate(place.candidates[0], config, shard_keys=place.shard_keys, store=place.store)
    assert scored["ok"]
    config["method"] = "fast_electra"
    assert not score_candidate(place.candidates[0], config, shard_keys=place.shard_keys, store=place.store)["ok"]


def test_candidates_are_scored_on_the_gpu_where_there_is_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds nothing stands for it; what is scored there is only asked where it is."""
    scores = MaskedScores(1.0, 0.5, 2.0, 0.1, 7, 0.5)
    seen: list[str] = []

    def score(models: Any, *_: Any, **__: Any) -> MaskedScores:
        seen.extend(model.device.type for model in (models if isinstance(models, list) else [models]))
        return scores

    for where in ("steps.auxiliary.device", "steps.machine.device"):
        monkeypatch.setattr(where, lambda: torch.device("meta"))
    for where in ("steps.auxiliary.score_masked_lm", "fast_electra_core.evaluation.score_masked_lms"):
        monkeypatch.setattr(where, score)
    more: dict[str, Any] = {"shard_keys": place.shard_keys, "store": place.store}
    scored = [score_candidate(each, place.config.to_dict(), **more) for each in place.candidates]
    score_together(choose(scored, ensemble_size=2), place.config, **more)
    assert seen == ["meta"] * 4


@pytest.mark.parametrize("method", ["uniform", "unigram", "bigram"])
def test_what_needs_no_model_draws_from_the_tokenizers_vocabulary_and_the_text(method: str, place: Place) -> None:
    train = place.dataset("train")
    counts = functools.partial(unigram_counts, train)
    num_ids = len(load_tokenizer(place.folder / "a"))
    proposal = build_model_free(place.configured(method=method), train, num_ids=num_ids, counts=counts)
    sequence = torch.arange(len(train))
    batch = make_batch(train, sequence, torch.zeros_like(sequence), mask_fraction=0.5, seed=1)
    drawn = set(proposal.sample(batch, Smoothing()).tolist())
    occurring = set(np.flatnonzero(counts(num_ids)).tolist())
    ordinary = set(range(num_ids)) - set(train.special_ids.all_special)
    assert drawn == (ordinary if method == "uniform" else occurring & ordinary)
