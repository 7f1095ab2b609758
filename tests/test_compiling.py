"""Compiled layers: each in one graph without a break, and the same loss, gradients and scores."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_methods import make, make_batch, totals_of
from torch.nn.parallel import DistributedDataParallel
from toys import METHODS, corrupt_at, electra_config
from transformers import ElectraForPreTraining, ModernBertConfig, ModernBertForTokenClassification

from fast_electra_core.fast_electra import FastElectra
from fast_electra_core.models import masked_logits

pytestmark = [
    # torch looks at the gradient of a layer's input itself.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """Runs what it is given as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def products(self) -> int:
        """Matrices multiplied by weights, in all graphs and the checkpointed parts in them."""
        parts = [part for graph in self.graphs for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        return sum(node.target is torch._C._nn.linear for part in parts for node in part.graph.nodes)


def loss_and_gradients(method: Any) -> tuple[float, dict[str, torch.Tensor]]:
    batch = make_batch()
    loss = method.loss(batch, totals_of(batch), progress=0.1, stats={})
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("with_checkpointing", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_the_same(name: str, with_checkpointing: bool) -> None:
    expected, expected_gradients = loss_and_gradients(make(name).train())
    method, backend = make(name).train(), Backend()
    if with_checkpointing:
        method.checkpoint_activations()
    method.compile_layers(backend=backend)  # type: ignore[arg-type]  # torch takes a function, too
    loss, gradients = loss_and_gradients(method)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=1e-4, atol=1e-5)
    # Query, key, value, attention's output and two of the feed-forward part: a layer, whole, in one graph.
    assert backend.products() == 6 * len(backend.graphs) > 0


def test_a_modernbert_is_compiled_layer_by_layer() -> None:
    ends = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    shape = ModernBertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        global_attn_every_n_layers=1, num_labels=1, **ends,
    )  # fmt: skip
    method = FastElectra(ModernBertForTokenClassification(shape), None, curriculum=None, rtd_weight=50.0).train()
    batch, backend = make_batch(), Backend()
    batch = batch._replace(corrupted_ids=batch.input_ids)
    losses = [float(method.loss(batch, totals_of(batch), progress=0.5, stats={}).detach())]
    method.compile_layers(backend=backend)  # type: ignore[arg-type]
    losses.append(float(method.loss(batch, totals_of(batch), progress=0.5, stats={}).detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    # The first layer has no norm before its attention; the others share a graph.
    assert [len(backend.graphs), backend.products()] == [2, 2 * 4]


def test_a_layer_stays_whole_in_a_group_whatever_it_exchanges_at_a_time() -> None:
    """Torch cuts what is compiled within DDP where a bucket of weights ends; here of 1 MB, the layer has 2.6."""
    detector = ElectraForPreTraining(electra_config(40, intermediate_size=40_000))
    method, backend = FastElectra(detector, None, curriculum=None, rtd_weight=50.0).train(), Backend()
    method.compile_layers(backend=backend)  # type: ignore[arg-type]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        batch = make_batch()
        batch = batch._replace(corrupted_ids=batch.input_ids)
        replica = DistributedDataParallel(method, bucket_cap_mb=1)
        replica(batch, totals_of(batch), progress=0.5)
    finally:
        torch.distributed.destroy_process_group()
    assert [len(backend.graphs), backend.products()] == [1, 6]


def test_layers_of_more_kinds_than_torch_allows_by_itself_are_compiled() -> None:
    """By itself it stops at eight versions of what all layers share: a width, a length and a mode make one each."""
    method, backend = make("masked_lm").train(), Backend()
    method.compile_layers(backend=backend)  # type: ignore[arg-type]
    whole = make_batch()
    for length in range(2, 12):
        batch = whole._each(lambda tensor, length=length: tensor[:, :length])
        method.loss(batch, totals_of(batch), progress=0.5, stats={})
    assert len(backend.graphs) == 10


@pytest.mark.parametrize("name", ["electra", "masked_lm"])
def test_the_last_layer_may_still_be_cut_where_no_gradient_is_asked_for(name: str) -> None:
    whole, method = make(name).eval(), make(name).eval()
    method.compile_layers(backend=Backend())  # type: ignore[arg-type]
    batch = make_batch()
    if name == "electra":
        expected, found = (corrupt_at(each, 1.0)(batch).corrupted_ids for each in (whole, method))
    else:
        with torch.no_grad():
            expected, found = (
                masked_logits(each.model, batch.masked_ids(4), batch.selected()) for each in (whole, method)
            )
    torch.testing.assert_close(found, expected)
