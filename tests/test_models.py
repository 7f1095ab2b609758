"""Models are built from a seed, run their heads on selected rows only, and are plain transformers models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import SPECIAL_IDS
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fast_electra_core.config import AuxiliaryConfig, PretrainConfig
from fast_electra_core.errors import AuxiliaryError, ConfigError
from fast_electra_core.models import (
    MASKED_LM_HEADS,
    build_discriminator,
    build_masked_lm,
    check_warm_start,
    count_parameters,
    detector_logits,
    encoder_config,
    freeze,
    masked_logits,
    set_embeddings,
    set_output_bias,
    warm_start,
)
from fast_electra_core.selection import find_selected
from steps.config import resolve_auxiliary, resolve_pretrain

VOCAB_SIZE = 60
TINY: dict[str, Any] = {
    "hidden_size": 16, "embedding_size": 16, "num_heads": 2, "num_layers": 2, "intermediate_size": 24,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "pad_token_id": 0,
}  # fmt: skip
ENDS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
FAMILIES: dict[str, Any] = {
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=8)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=VOCAB_SIZE, dim=16, hidden_dim=24, n_layers=2, n_heads=2, pad_token_id=0)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **ENDS)),
    "deberta": lambda: DebertaForMaskedLM(DebertaConfig(**SIZES)),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES)),
}
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
VARIANTS: dict[str, Any] = {
    **FAMILIES,
    # Counts positions from pad + 1, and one position is left for that.
    "roberta, every position": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES | {"pad_token_id": 1}, max_position_embeddings=14)
    ),
    "deberta, relative": lambda: DebertaForMaskedLM(DebertaConfig(**SIZES, **RELATIVE, max_position_embeddings=8)),
    "deberta, newer head": lambda: DebertaForMaskedLM(DebertaConfig(**SIZES, legacy=False)),
    "deberta-v2, newer head as DeBERTaV3 has it": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(
            **SIZES, **RELATIVE, legacy=False, position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm",
            conv_kernel_size=3, conv_act="gelu", max_position_embeddings=8,
        )
    ),
}  # fmt: skip
ARCHITECTURES = ["electra", "modernbert"]


def shape(architecture: str, **changes: Any) -> Any:
    config = PretrainConfig(architecture=architecture, **{**TINY, **changes})
    return encoder_config(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)


def input_ids(rows: int = 3, length: int = 12) -> torch.Tensor:
    ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = SPECIAL_IDS.cls, SPECIAL_IDS.sep
    return ids


def same_weights(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def test_every_known_family_is_tried_here() -> None:
    assert set(FAMILIES) == set(MASKED_LM_HEADS)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("family", VARIANTS)
def test_masked_logits_are_the_full_logits_of_the_selected_rows(family: str, with_gradients: bool) -> None:
    torch.manual_seed(0)
    model = VARIANTS[family]().eval()
    with torch.no_grad():  # away from zero biases and unit norms, which would hide a part left out
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = input_ids()
    is_selected = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    is_selected[1] = False  # a sequence without any
    with torch.set_grad_enabled(with_gradients):
        logits = masked_logits(model, ids, find_selected(is_selected))
    assert logits.shape == (int(is_selected.sum()), VOCAB_SIZE)
    torch.testing.assert_close(logits, model(input_ids=ids).logits[is_selected])


def test_a_model_of_another_type_cannot_be_an_auxiliary() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    with pytest.raises(AuxiliaryError, match="model type 'gpt2' cannot serve as auxiliary; known are electra, bert,"):
        masked_logits(model, input_ids(), find_selected(torch.ones(3, 12, dtype=torch.bool)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("build", [build_discriminator, build_masked_lm])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(architecture: str, build: Any) -> None:
    config = shape(architecture)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = build(config, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state moved"
    torch.manual_seed(456)
    assert same_weights(first, build(config, seed=1))
    assert not same_weights(first, build(config, seed=2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shape_is_the_one_asked_for(architecture: str) -> None:
    config = shape(architecture, num_layers=3, sequence_length=600)
    model = build_discriminator(config, seed=0)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 16, 24)
    assert config.num_attention_heads == 2
    assert config.max_position_embeddings == 600
    assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE, 16)
    assert shape(architecture).max_position_embeddings == 512
    assert config.model_type == architecture


def test_an_electra_may_have_embeddings_of_another_width() -> None:
    model = build_discriminator(shape("electra", embedding_size=8), seed=0)
    assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE, 8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_models_dropout_is_the_one_asked_for(architecture: str, dropout: float) -> None:
    model = build_discriminator(shape(architecture, dropout=dropout), seed=0).train()
    ids = input_ids()
    torch.manual_seed(0)
    assert torch.equal(detector_logits(model, ids), detector_logits(model, ids)) == (dropout == 0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_detector_gives_one_logit_per_token(architecture: str) -> None:
    assert detector_logits(build_discriminator(shape(architecture), seed=0), input_ids()).shape == (3, 12)


@pytest.mark.parametrize(
    ("architecture", "auto_class"),
    [("electra", ElectraForPreTraining), ("modernbert", AutoModelForTokenClassification)],
)
def test_a_saved_discriminator_is_a_plain_transformers_model(
    architecture: str, auto_class: Any, tmp_path: Path
) -> None:
    model = build_discriminator(shape(architecture), seed=3).eval()
    model.save_pretrained(tmp_path)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(detector_logits(loaded.eval(), input_ids()), detector_logits(model, input_ids()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_masked_lm_is_a_plain_transformers_model(architecture: str, tmp_path: Path) -> None:
    model = build_masked_lm(shape(architecture), seed=3).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids()).logits, model(input_ids()).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_matrix_of_a_masked_lm_stays_tied_to_its_embeddings(architecture: str) -> None:
    """lucidrains: re-tying leaves the head on the old matrix, so that more parameters train than should."""
    model = build_masked_lm(shape(architecture), seed=0)
    set_embeddings(model, torch.randn(VOCAB_SIZE, 16, generator=torch.Generator().manual_seed(0)))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    by_address = {value.data_ptr(): value.numel() for value in model.state_dict().values()}
    assert count_parameters(model) == sum(by_address.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_set_embeddings_centres_and_scales(architecture: str) -> None:
    """By hand: the columns' mean goes to 0, the spread of the whole to 0.1; differences keep their ratios."""
    model = build_discriminator(shape(architecture), seed=0)
    given = 7.0 + 3.0 * torch.randn(VOCAB_SIZE, 16, generator=torch.Generator().manual_seed(0))
    set_embeddings(model, given)
    weight = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(weight.mean(dim=0), torch.zeros(16), atol=1e-6, rtol=0)
    assert float(weight.std()) == pytest.approx(0.1, rel=1e-5)
    expected = (given[5] - given[9]) * float((weight[0, 0] - weight[1, 0]) / (given[0, 0] - given[1, 0]))
    torch.testing.assert_close(weight[5] - weight[9], expected, rtol=1e-4, atol=1e-5)
    assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("with_layers", [False, True])
def test_a_warm_start_copies_embeddings_and_the_lowest_layers_and_nothing_else(
    architecture: str, with_layers: bool
) -> None:
    auxiliary = build_masked_lm(shape(architecture, num_layers=2), seed=1)
    untouched = build_discriminator(shape(architecture, num_layers=4), seed=2)
    for parameter in auxiliary.parameters():
        parameter.data.add_(0.5)  # also what starts as 0 or 1 everywhere, biases and norms
    model = build_discriminator(shape(architecture, num_layers=4), seed=2)
    warm_start(model, auxiliary, with_layers=with_layers)
    given, before = auxiliary.base_model.state_dict(), untouched.state_dict()
    layer_names = ("encoder.layer.0.", "encoder.layer.1.", "layers.0.", "layers.1.")
    num_copied = 0
    for name, value in model.state_dict().items():
        own = name.removeprefix(f"{model.base_model_prefix}.")
        is_copied = own.startswith("embeddings.") or (with_layers and own.startswith(layer_names))
        assert torch.equal(value, given[own] if is_copied else before[name]), name
        num_copied += is_copied
    assert num_copied >= 2
    assert model.get_input_embeddings().weight.data_ptr() != auxiliary.get_input_embeddings().weight.data_ptr()


def test_a_wider_main_model_may_take_over_the_embeddings_alone() -> None:
    auxiliary = build_masked_lm(shape("electra"), seed=1)
    model = build_discriminator(shape("electra", hidden_size=32, num_layers=1), seed=2)
    warm_start(model, auxiliary, with_layers=False)
    assert torch.equal(model.get_input_embeddings().weight, auxiliary.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("architecture", "changes", "with_layers", "where"),
    [
        ("modernbert", {}, False, r"embeddings.word_embeddings.weight is \(60, 16\) in the auxiliary and missing"),
        (
            "electra",
            {"embedding_size": 8},
            False,
            r"word_embeddings.weight is \(60, 16\) in the auxiliary and \(60, 8\)",
        ),
        ("electra", {"num_layers": 1}, True, r"encoder.layer.1.* in the auxiliary and missing in the main model"),
        ("electra", {"num_heads": 4}, True, "the auxiliary has 2 attention heads, the main model 4"),
        ("electra", {"intermediate_size": 8}, True, r"intermediate.dense.weight is \(24, 16\) .* and \(8, 16\) in"),
    ],
    ids=["architecture", "width of the embeddings", "fewer layers", "heads", "width of the feed-forward"],
)
def test_a_warm_start_that_does_not_fit_is_refused_before_anything_is_copied(
    architecture: str, changes: dict[str, Any], with_layers: bool, where: str
) -> None:
    auxiliary = build_masked_lm(shape("electra"), seed=1)
    model, untouched = (build_discriminator(shape(architecture, **changes), seed=2) for _ in range(2))
    with pytest.raises(ConfigError, match=f"^warm_start does not fit: .*{where}"):
        warm_start(model, auxiliary, with_layers=with_layers)
    assert same_weights(model, untouched)
    with torch.device("meta"):
        unbuilt = build_discriminator(shape(architecture, **changes), seed=2)
    with pytest.raises(ConfigError, match=f"^warm_start does not fit: .*{where}"):
        check_warm_start(unbuilt, auxiliary, with_layers=with_layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_masked_lm_starts_as_the_unigram_model(architecture: str) -> None:
    model = build_masked_lm(shape(architecture), seed=0).eval()
    counts = np.arange(VOCAB_SIZE) ** 2
    set_output_bias(model, counts)
    unigram = torch.from_numpy((counts + 1) / (counts + 1).sum()).float()
    bias = model.get_output_embeddings().bias.detach()
    torch.testing.assert_close(bias, unigram.log())
    model.get_input_embeddings().weight.data.zero_()  # the head sees nothing: what is left is the bias
    probabilities = model(input_ids()).logits.softmax(dim=-1)
    torch.testing.assert_close(probabilities, unigram.expand(3, 12, -1))


def test_freezing_ends_gradients_and_dropout() -> None:
    model = build_masked_lm(shape("electra", dropout=0.5), seed=0).train()
    freeze(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_shared_parameters_count_once() -> None:
    first, second = torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(3, 4, bias=False)
    second.weight = first.weight
    assert count_parameters(torch.nn.ModuleList([first, second, torch.nn.Linear(2, 2)])) == 12 + 6


def test_modernbert_base_has_the_parameters_of_modernbert_base() -> None:
    """By hand. A layer: 3·768² + 768² of attention, 768 × 2·1152 + 1152 × 768 of the gated feed-forward, two norms of
    768 without bias; the first layer has one norm. Head: 768², a norm, 768 + 1."""
    layer = 4 * 768**2 + 768 * 2304 + 1152 * 768 + 2 * 768
    encoder = 50_368 * 768 + 768 + 22 * layer - 768 + 768
    assert encoder == 149_014_272  # "149M", as its model card says
    config = resolve_pretrain({"preset": "modernbert_base"})
    with torch.device("meta"):
        shape = encoder_config(config, vocab_size=50_368, special_ids=SPECIAL_IDS)
        model = build_discriminator(shape, seed=0)
        auxiliary = build_masked_lm(
            encoder_config(
                resolve_auxiliary({"preset": "modernbert_base"}), vocab_size=50_368, special_ids=SPECIAL_IDS
            ),
            seed=0,
        )
    assert count_parameters(model.base_model) == encoder
    assert count_parameters(model) == encoder + 768**2 + 768 + 769
    # The output matrix is tied; the head has a bias for each token.
    assert count_parameters(auxiliary) == encoder - 15 * layer + 768**2 + 768 + 50_368
    assert all(weight.is_meta for weight in [*model.parameters(), *auxiliary.parameters()])
    assert set(shape.layer_types) == {"full_attention"}


def test_auxiliary_and_main_model_of_one_config_have_one_shape() -> None:
    auxiliary = AuxiliaryConfig(architecture="modernbert", **TINY)
    config = encoder_config(auxiliary, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    assert config.to_dict() == shape("modernbert").to_dict()
