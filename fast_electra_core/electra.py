"""The rivals that train a generator alongside the main model: ELECTRA, and what became of it.

They differ in what the two models share, and in nothing else:

- Electra: the embeddings, where their widths agree, and the optimizer.
- DecoupledElectra: nothing.
- DisentangledElectra: the embeddings, but no gradient.

Shapes: B sequences, L tokens per sequence, N selected tokens, V vocabulary, D width of the embeddings.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from fast_electra_core.corruption import Corruption, place, sample_replacements
from fast_electra_core.errors import ConfigError
from fast_electra_core.losses import masked_lm_loss_sum, rtd_loss_sum
from fast_electra_core.methods import (
    Batch,
    Method,
    ParameterSet,
    Stats,
    Totals,
    add_detection_stats,
    detection_metrics,
    trainable_parameters,
)
from fast_electra_core.models import detector_logits, masked_logits


class Electra(Method):
    """Joint ELECTRA, the strong baseline: a generator trained alongside, in one dropout-free pass at temperature 1.

    ELECTRA (arXiv 2003.10555), sec. 3: loss = MLM + 50 × RTD, token embeddings shared where their widths agree.
    """

    def __init__(
        self,
        discriminator: PreTrainedModel,
        generator: PreTrainedModel,
        *,
        rtd_weight: float,
        mask_token_id: int,
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self._rtd_weight = rtd_weight
        self._mask_token_id = mask_token_id
        self._share_embeddings()

    def _share_embeddings(self) -> None:
        if embedding_shapes_agree(self.discriminator, self.generator):
            hand_over_embeddings(self.discriminator, self.generator)

    def train(self, mode: bool = True) -> "Electra":
        """As nn.Module.train, but the generator keeps its dropout off: its one pass is also the one sampled from."""
        super().train(mode)
        self.generator.eval()
        return self

    def _generate(self, batch: Batch) -> Tensor:
        masked_ids = batch.masked_ids(self._mask_token_id)
        return masked_logits(self.generator, masked_ids, batch.selected(), batch.documents)  # (N, V)

    @torch.no_grad()
    def corrupt(self, batch: Batch, *, temperature: float) -> Corruption:
        """The batch with the generator's samples in the selected places."""
        uniform = batch.selected().pick(batch.sample_uniforms)
        samples = sample_replacements(self._generate(batch), uniform, temperature)
        return place(batch.input_ids, batch.selected(), samples)

    def loss(self, batch: Batch, totals: Totals, *, progress: float, stats: Stats) -> Tensor:
        generated = self._generate(batch)
        uniform = batch.selected().pick(batch.sample_uniforms)
        samples = sample_replacements(generated.detach(), uniform, temperature=1.0)
        # Of logits that are not finite, as the loss is not either, they lie past the vocabulary's end: on a GPU to look
        # such a token up ends the process, where the step is to be left out.
        samples = samples.clamp(max=generated.shape[1] - 1)
        corruption = place(batch.input_ids, batch.selected(), samples)
        masked_sum = masked_lm_loss_sum(generated, batch.selected().pick(batch.input_ids))
        logits = detector_logits(self.discriminator, corruption.corrupted_ids, batch.documents)
        rtd_sum = rtd_loss_sum(logits, corruption.is_replaced)
        is_replaced, is_selected = corruption.is_replaced, batch.is_selected
        add_detection_stats(stats, logits.detach(), is_replaced, is_selected, rtd_loss=rtd_sum, masked_loss=masked_sum)
        return masked_sum / totals.num_selected + self._rtd_weight * rtd_sum / totals.num_tokens

    def summarise(self, sums: dict[str, float], *, progress: float) -> dict[str, float]:
        return {
            "loss": sums["rtd_loss"] / sums["num_tokens"],
            "generator_loss": sums["masked_loss"] / sums["num_selected"],
            "temperature": 1.0,
            **detection_metrics(sums),
        }


class DecoupledElectra(Electra):
    """ELECTRA whose two models have optimizers of their own: clipped apart, each at its own learning rate.

    Under one Adam the weight of a loss does not control how fast its model learns; two optimizers do. C. Dong et al.,
    "Understand and Modularize Generator Optimization in ELECTRA-style Pretraining" (ICML 2023, PMLR 202), abstract.
    `Unverified:` beyond the abstract, so also what they do about the embeddings. Here they are not shared: a shared
    matrix has one second moment for both gradients, and the larger would scale the other again.
    """

    def __init__(
        self,
        discriminator: PreTrainedModel,
        generator: PreTrainedModel,
        *,
        rtd_weight: float,
        mask_token_id: int,
        generator_rate_factor: float = 1.0,
    ) -> None:
        """generator_rate_factor: the generator's learning rate over the main model's."""
        super().__init__(discriminator, generator, rtd_weight=rtd_weight, mask_token_id=mask_token_id)
        self._generator_rate_factor = generator_rate_factor

    def _share_embeddings(self) -> None:
        pass  # see the class

    def parameter_sets(self) -> list[ParameterSet]:
        return [
            ParameterSet("", trainable_parameters(self.discriminator), 1.0),
            ParameterSet("generator_", trainable_parameters(self.generator), self._generator_rate_factor),
        ]


class DisentangledElectra(DecoupledElectra):
    """ELECTRA with gradient-disentangled embedding sharing: discriminator's embeddings = stop_grad(generator's) + Δ.

    DeBERTaV3 (arXiv 2111.09543), sec. 3, with optimizers apart as its published code has them (microsoft/DeBERTa,
    rtd_task.py: decoupled_training, the default and in every recipe; the masked loss unweighted). Δ starts at 0. What
    the generator learns moves both models' token embeddings, replaced token detection moves Δ alone.

    Departs from that code: it gives the position embeddings a Δ too, which its recipes do not feed to the encoder's
    input; its generator has taken its step before the main model reads the embeddings, and trains with dropout.
    """

    def _share_embeddings(self) -> None:
        check_shared_embeddings(self.discriminator, self.generator)
        hand_over_embeddings(self.discriminator, self.generator)
        ours = self.discriminator.get_input_embeddings()
        ours.weight = nn.Parameter(torch.zeros_like(ours.weight))  # Δ; the generator keeps the matrix itself
        parametrize.register_parametrization(ours, "weight", _OnTopOf(self.generator.get_input_embeddings()))

    def finish(self) -> None:
        """The main model's embeddings become the sum, as an ordinary matrix; there is no training afterwards."""
        ours = self.discriminator.get_input_embeddings()
        if parametrize.is_parametrized(ours, "weight"):
            parametrize.remove_parametrizations(ours, "weight", leave_parametrized=True)


class _OnTopOf(nn.Module):
    """Δ (V, D) -> Δ + the other table's weight, which gets no gradient from it."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the discriminator does not list the generator's parameters as its own.
        self._other = (other,)

    def forward(self, delta: Tensor) -> Tensor:
        weight: Tensor = self._other[0].weight  # type: ignore[assignment]
        return delta + weight.detach()


def embedding_shapes_agree(discriminator: PreTrainedModel, generator: PreTrainedModel) -> bool:
    """Whether the two token embedding tables could be one."""
    ours, theirs = discriminator.get_input_embeddings(), generator.get_input_embeddings()
    return bool(ours.weight.shape == theirs.weight.shape)


def check_shared_embeddings(discriminator: PreTrainedModel, generator: PreTrainedModel) -> None:
    """Their token embeddings could be one; the models may be on the meta device.

    Raises:
        ConfigError: their widths differ.
    """
    if not embedding_shapes_agree(discriminator, generator):
        ours, theirs = (model.get_input_embeddings().weight.shape[1] for model in (discriminator, generator))
        raise ConfigError(
            f"method electra_gdes shares token embeddings, but the main model's are {ours} wide and the auxiliary's, "
            f"whose shape the generator takes, {theirs}. Give --embedding_size {theirs}, another auxiliary, or "
            "--method electra_decoupled"
        )


def hand_over_embeddings(discriminator: PreTrainedModel, generator: PreTrainedModel) -> None:
    """The generator's token embeddings are now the discriminator's, as one parameter.

    All that was tied to them in the generator goes along, its output matrix above all: where that is forgotten
    (lucidrains/electra-pytorch), the head keeps training the old one. It is this way round so that what the main model
    took over at a warm start stays.
    """
    old, new = generator.get_input_embeddings().weight, discriminator.get_input_embeddings().weight
    for module in generator.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is old:
                setattr(module, name, new)
