"""A config becomes the method it names, on models whose start is a function of seed and text."""

from typing import Any

import numpy as np
import pytest
import torch
from toys import MASK, SPECIAL_IDS, electra_config
from transformers import ElectraForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from fast_electra_core.config import PretrainConfig
from fast_electra_core.electra import DecoupledElectra, DisentangledElectra, Electra
from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.method_building import build_generator, build_main_model, build_method, curriculum_of
from fast_electra_core.methods import MaskedLanguageModel
from fast_electra_core.models import set_output_bias
from fast_electra_core.proposals import FrozenMaskedLm

VOCAB_SIZE = 30
CLASSES = {
    "fast_electra": FastElectra, "electra": Electra, "electra_decoupled": DecoupledElectra,
    "electra_gdes": DisentangledElectra, "mlm": MaskedLanguageModel,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "num_layers": 1, "hidden_size": 8, "embedding_size": 8, "num_heads": 2, "intermediate_size": 12,
}  # fmt: skip


def build(method: str, **changes: Any) -> Any:
    config = PretrainConfig(method=method, **{**SIZES, **changes})
    main_model = build_main_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    masked_lm = None if method == "mlm" else ElectraForMaskedLM(electra_config(VOCAB_SIZE))
    return build_method(config, main_model, masked_lm, mask_token_id=MASK), main_model


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
@pytest.mark.parametrize("method", CLASSES)
def test_the_method_that_is_named_is_built_around_the_main_model(method: str, architecture: str) -> None:
    built, main_model = build(method, architecture=architecture)
    assert type(built) is CLASSES[method]
    assert (built.model if method == "mlm" else built.discriminator) is main_model
    head = "ForMaskedLM" if method == "mlm" else "ForPreTraining"
    expected = {"electra": f"Electra{head}", "modernbert": "ModernBertForTokenClassification"}
    if method == "mlm":
        expected["modernbert"] = "ModernBertForMaskedLM"
    assert type(main_model).__name__ == expected[architecture]


def test_top_k_grows_to_the_auxiliarys_vocabulary_as_it_does_ahead_of_training() -> None:
    """A main model that goes on from another may have a larger one."""
    config = PretrainConfig(**SIZES, top_k=5)
    main_model = build_main_model(config, vocab_size=VOCAB_SIZE + 3, special_ids=SPECIAL_IDS)
    frozen = FrozenMaskedLm([ElectraForMaskedLM(electra_config(VOCAB_SIZE))], mask_token_id=MASK)
    built = build_method(config, main_model, frozen, mask_token_id=MASK)
    assert built._curriculum == curriculum_of(config, vocab_size=VOCAB_SIZE)


def test_the_generators_learning_rate_is_the_main_models_unless_it_is_given() -> None:
    given: dict[str, Any]
    for given, factor in (({}, 1.0), ({"generator_learning_rate": 1e-4}, 0.2)):
        for method in ("electra_decoupled", "electra_gdes"):
            sets = build(method, learning_rate=5e-4, **given)[0].parameter_sets()
            assert [each.learning_rate_factor for each in sets] == [1.0, pytest.approx(factor)]


def test_a_generator_is_the_auxiliarys_shape_a_start_of_its_own_and_at_first_the_unigram_model() -> None:
    auxiliary = ElectraForMaskedLM(electra_config(VOCAB_SIZE, dropout=0.2))
    counts = np.arange(VOCAB_SIZE)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = (build_generator(auxiliary, counts, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(first) is ElectraForMaskedLM
    theirs, ours = auxiliary.state_dict(), first.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.items())
    name = "electra.encoder.layer.0.output.dense.weight"
    assert not torch.equal(ours[name], theirs[name])
    expected = np.log((counts + 1) / (counts + 1).sum())
    np.testing.assert_allclose(first.get_output_embeddings().bias.detach().numpy(), expected, rtol=1e-6)


def test_a_head_without_bias_stays_as_it_is() -> None:
    shape = ModernBertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, decoder_bias=False,
    )  # fmt: skip
    model = ModernBertForMaskedLM(shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_output_bias(model, np.arange(VOCAB_SIZE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
