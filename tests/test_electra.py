"""The joint rivals: what their two models share, what gradient goes where, and what is delivered in the end."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import JOINT, MASK, dataset_of, electra_config, method_of
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core.batches import batch_at
from fast_electra_core.config import PretrainConfig
from fast_electra_core.data import TokenDataset
from fast_electra_core.electra import DecoupledElectra, DisentangledElectra, Electra
from fast_electra_core.errors import ConfigError
from fast_electra_core.methods import Batch, Method, Totals
from fast_electra_core.models import build_masked_lm, count_parameters, warm_start
from fast_electra_core.optimizer import build_optimizer
from fast_electra_core.trainer import Hooks, Row, train

VOCAB_SIZE = 40
CONFIG = PretrainConfig(
    num_steps=4, batch_size=4, micro_batch_size=2, sequence_length=12, mask_fraction=0.3, learning_rate=0.02,
    warmup_fraction=0.5, weight_decay=0.1, max_gradient_norm=0.5, log_every_steps=1, precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    documents = [np.random.default_rng(0).integers(5, VOCAB_SIZE, 200)]
    return dataset_of(tmp_path_factory.mktemp("shard"), documents, vocab_size=VOCAB_SIZE, sequence_length=12)


def shape(**changes: Any) -> ElectraConfig:
    return electra_config(VOCAB_SIZE, **{"embedding_size": 8, "hidden_size": 16, "intermediate_size": 24, **changes})


def spread(model: Any, seed: int) -> Any:
    """The model, its weights far from the start, where every prediction is nearly uniform."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def models(**changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(2)
    discriminator, generator = ElectraForPreTraining(shape()), ElectraForMaskedLM(shape(**changes))
    return spread(discriminator, 0), spread(generator, 1)


def make(name: str, **more: Any) -> Any:
    return method_of(name, *models(), **more)


def make_batch(seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (6, 12), generator=rng)
    is_selected = torch.rand(6, 12, generator=rng) < 0.3
    return Batch(ids, is_selected, torch.rand(6, 12, generator=rng, dtype=torch.float64))


def totals_of(batch: Batch) -> Totals:
    return Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))


def masked_loss(generator: Any, batch: Batch) -> Any:
    """transformers' own."""
    labels = batch.input_ids.masked_fill(~batch.is_selected, -100)
    return generator(batch.input_ids.masked_fill(batch.is_selected, MASK), labels=labels).loss


def rtd_loss(discriminator: Any, method: Any, batch: Batch) -> Any:
    """transformers' own, on what the method's generator would draw now."""
    corruption = method.corrupt(batch, temperature=1.0)
    return discriminator(corruption.corrupted_ids, labels=corruption.is_replaced.long()).loss


def backward(method: Method, batch: Batch) -> float:
    method.zero_grad()
    loss = method.loss(batch, totals_of(batch), progress=0.5, stats={})
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def run(method: Method, dataset: TokenDataset, folder: Path) -> list[Row]:
    """Train for CONFIG's four steps; the rows of metrics."""
    rows: list[Row] = []
    train(method, dataset, config=CONFIG, checkpoints=folder, hooks=Hooks(on_metrics=rows.append))
    return rows


# What is shared


def test_sharing_takes_the_generators_output_matrix_along_at_the_sizes_of_electra_small() -> None:
    """lucidrains' re-tying leaves it on the old matrix, and 18.1M parameters train where 14.2M should."""
    with torch.device("meta"):
        pair = (
            ElectraForPreTraining(ElectraConfig()),
            ElectraForMaskedLM(ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256)),
        )
        apart = DecoupledElectra(*pair, rtd_weight=50.0, mask_token_id=MASK)
        assert count_parameters(apart) == 18_169_083
        shared = Electra(*pair, rtd_weight=50.0, mask_token_id=MASK)
    assert count_parameters(shared) == 18_169_083 - 30_522 * 128 == 14_262_267
    assert shared.generator.get_output_embeddings().weight is shared.discriminator.get_input_embeddings().weight


def test_what_an_optimizer_steps_is_every_parameter_once() -> None:
    for name in JOINT:
        method = make(name)
        stepped = [id(p) for group in build_optimizer(method, CONFIG).param_groups for p in group["params"]]
        assert sorted(stepped) == sorted(id(parameter) for parameter in method.parameters()), name
        assert len(set(stepped)) == len(stepped), name


@pytest.mark.parametrize("name", JOINT)
def test_a_warm_started_main_model_keeps_its_embeddings_beside_any_generator(name: str) -> None:
    discriminator, generator = models()
    auxiliary = spread(build_masked_lm(shape(), seed=7), 7)
    warm_start(discriminator, auxiliary, with_layers=False)
    method = method_of(name, discriminator, generator)
    expected = auxiliary.get_input_embeddings().weight
    assert torch.equal(method.discriminator.get_input_embeddings().weight, expected)
    is_shared = torch.equal(method.generator.get_input_embeddings().weight, expected)
    assert is_shared == (name != "electra_decoupled")


def test_decoupled_models_share_no_parameter() -> None:
    method = make("electra_decoupled")
    ours, theirs = ({id(p) for p in model.parameters()} for model in (method.discriminator, method.generator))
    assert not ours & theirs


# Optimizers apart


def test_decoupled_training_is_two_torch_optimizers_side_by_side(dataset: TokenDataset, tmp_path: Path) -> None:
    """Four steps of the trainer, with clipping that bites, beside two loops written out on transformers' own losses."""
    method = make("electra_decoupled", generator_rate_factor=0.5)
    twin = copy.deepcopy(method)
    run(method, dataset, tmp_path)
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
                {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.999),
            eps=1e-6,
        )
        for model in (twin.discriminator, twin.generator)
    ]
    norms = []
    for step, rate in enumerate((0.01, 0.015, 0.01, 0.005)):
        batch = batch_at(step, dataset, CONFIG)
        losses = 50.0 * rtd_loss(twin.discriminator, twin, batch), masked_loss(twin.generator, batch)
        for model, optimizer, loss, factor in zip(
            (twin.discriminator, twin.generator), optimizers, losses, (1.0, 0.5), strict=True
        ):
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
    assert min(norms) > 0.5
    expected = twin.state_dict()
    for name, value in method.state_dict().items():
        if "key.bias" not in name:  # softmax does not see it: its gradient is rounding, which Adam blows up
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("name", "is_apart"), [("electra", False), ("electra_decoupled", True), ("electra_gdes", True)]
)
def test_the_weight_of_detection_moves_the_generator_only_where_the_optimizer_is_shared(
    name: str, is_apart: bool, dataset: TokenDataset, tmp_path: Path
) -> None:
    """Widths that differ, so that plain ELECTRA shares the optimizer alone; equal ones where they must be."""
    width = 8 if name == "electra_gdes" else 4
    after = []
    for rtd_weight in (50.0, 5000.0):
        method = JOINT[name](*models(embedding_size=width), rtd_weight=rtd_weight, mask_token_id=MASK)
        run(method, dataset, tmp_path / str(rtd_weight))
        after.append(method.generator.state_dict())
    equal = [torch.equal(value, after[1][key]) for key, value in after[0].items()]
    assert all(equal) if is_apart else not all(equal)


def test_norms_and_rates_of_models_apart_are_logged_apart(dataset: TokenDataset, tmp_path: Path) -> None:
    method = make("electra_decoupled", generator_rate_factor=0.25)
    twin = copy.deepcopy(method)
    backward(twin, batch_at(0, dataset, CONFIG))
    first, *_, last = run(method, dataset, tmp_path / "apart")
    for prefix, model in (("", twin.discriminator), ("generator_", twin.generator)):
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        assert first[f"{prefix}gradient_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert (last["learning_rate"], last["generator_learning_rate"]) == (pytest.approx(0.005), pytest.approx(0.00125))
    together = run(make("electra"), dataset, tmp_path / "together")
    assert not {"generator_gradient_norm", "generator_learning_rate"} & set(together[-1])


# Embeddings shared without gradient


def test_the_detectors_embeddings_are_the_generators_plus_a_delta_that_starts_at_zero() -> None:
    method = make("electra_gdes")
    ours, theirs = method.discriminator.get_input_embeddings(), method.generator.get_input_embeddings()
    assert torch.equal(ours.weight, theirs.weight)
    delta = ours.parametrizations.weight.original
    assert not delta.any()
    with torch.no_grad():
        delta[7] += 2.0
        theirs.weight[9] -= 3.0
    assert torch.equal(ours.weight[7], theirs.weight[7] + 2.0)
    assert torch.equal(ours.weight[9], theirs.weight[9])


def test_no_gradient_of_detection_reaches_the_generators_embeddings_and_delta_gets_all_of_it() -> None:
    """Beside two plain models that share nothing, with the same weights: the detector's embeddings summed by hand."""
    method, batch = make("electra_gdes"), make_batch()
    ours = method.discriminator.get_input_embeddings()
    delta = ours.parametrizations.weight.original
    with torch.no_grad():
        delta.copy_(0.2 * torch.randn(delta.shape, generator=torch.Generator().manual_seed(3)))
    generator = copy.deepcopy(method.generator)
    discriminator = ElectraForPreTraining(shape())
    state = {name: value for name, value in method.discriminator.state_dict().items() if "parametriz" not in name}
    name = "electra.embeddings.word_embeddings.weight"
    state[name] = generator.get_input_embeddings().weight.detach() + delta.detach()
    discriminator.load_state_dict(state)

    masked, detection = masked_loss(generator, batch), 50.0 * rtd_loss(discriminator, method, batch)
    assert backward(method, batch) == pytest.approx((masked + detection).item(), rel=1e-5)
    masked.backward()
    detection.backward()
    for name, parameter in method.generator.named_parameters():
        expected = dict(generator.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=name)
    expected = discriminator.get_input_embeddings().weight.grad
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(delta.grad, expected, rtol=1e-4, atol=1e-5)


def test_detection_moves_delta_and_never_the_generators_matrix() -> None:
    """Masked positions there are none of, so that detection is all there is to learn."""
    method = make("electra_gdes")
    optimizer = build_optimizer(method, CONFIG)
    batch = make_batch()._replace(is_selected=torch.zeros(6, 12, dtype=torch.bool))
    loss = method.loss(batch, Totals(72, torch.tensor(1.0)), progress=0.5, stats={})
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in method.generator.parameters())
    optimizer.step()
    assert method.discriminator.get_input_embeddings().parametrizations.weight.original.any()


def test_after_training_the_sum_is_what_is_saved(dataset: TokenDataset, tmp_path: Path) -> None:
    method = make("electra_gdes")
    run(method, dataset, tmp_path / "checkpoints")
    ours, theirs = method.discriminator.get_input_embeddings(), method.generator.get_input_embeddings()
    delta = ours.parametrizations.weight.original.detach().clone()
    assert delta.any()
    before = method.discriminator(make_batch().input_ids).logits
    method.finish()
    method.finish()  # a run that had ended is ended once more
    assert torch.equal(ours.weight, theirs.weight + delta)
    method.discriminator.save_pretrained(tmp_path / "model")
    loaded = ElectraForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.get_input_embeddings().weight, theirs.weight + delta)
    torch.testing.assert_close(loaded(make_batch().input_ids).logits, before)


def test_embeddings_of_two_widths_cannot_be_disentangled() -> None:
    message = (
        r"electra_gdes shares token embeddings, but the main model's are 8 wide .*, 4\. Give --embedding_size 4, an"
    )
    with pytest.raises(ConfigError, match=message):
        DisentangledElectra(*models(embedding_size=4), rtd_weight=50.0, mask_token_id=MASK)


# What is delivered


@pytest.mark.parametrize("name", ["fast_electra", *JOINT])
def test_the_trained_detector_loads_into_transformers_class_with_the_same_logits(
    name: str, dataset: TokenDataset, tmp_path: Path
) -> None:
    method = make(name)
    run(method, dataset, tmp_path / "checkpoints")
    method.finish()
    method.discriminator.save_pretrained(tmp_path / "model")
    loaded, report = ElectraForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = make_batch(5).input_ids
    assert torch.equal(loaded.eval()(ids).logits, method.discriminator.eval()(ids).logits)


def test_weights_of_transformers_class_give_the_method_its_logits(tmp_path: Path) -> None:
    """The other way round: what ElectraForMaskedLM has saved is a generator like any other."""
    discriminator, generator = models()
    generator.save_pretrained(tmp_path)
    batch = make_batch()
    loaded = ElectraForMaskedLM.from_pretrained(tmp_path)
    first, second = (method_of("electra", copy.deepcopy(discriminator), each) for each in (generator, loaded))
    assert backward(first, batch) == backward(second, batch)
