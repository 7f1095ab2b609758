"""A run's ledger: operations in both accountings by hand and by the method's table, memory as the allocator sees it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from toys import MASK, METHODS, SPECIAL_IDS, method_of
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from fast_electra_core import config
from fast_electra_core.config import PretrainConfig
from fast_electra_core.cost import METHOD_WORK, MethodWork, RunSize, plan_flops, plan_memory
from fast_electra_core.distillation import DistilledMaskedLM
from fast_electra_core.methods import Batch, Totals
from fast_electra_core.model_cost import ModelCost, cost_of
from fast_electra_core.models import build_discriminator, build_masked_lm, encoder_config
from fast_electra_core.optimizer import build_optimizer

FROZEN, JOINT, APART, MLM = (METHOD_WORK[name] for name in ("fast_electra", "electra", "electra_decoupled", "mlm"))


def priced(forward_flops: float, **changes: Any) -> ModelCost:
    nothing = ModelCost(forward_flops, 0.0, 0.0, 0, (0, 0), 0.0, 0.0, 0.0)
    return nothing._replace(**changes)


def sized(num_tokens: int = 100, **changes: Any) -> RunSize:
    return RunSize(**{"num_tokens": num_tokens, "tokens_per_pass": 1, **changes})


def on_paper(model_class: Any, *, layers: int, width: int, embedding: int, vocab_size: int = 30_522) -> Any:
    shape = ElectraConfig(
        vocab_size=vocab_size, embedding_size=embedding, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), intermediate_size=4 * width,
    )  # fmt: skip
    with torch.device("meta"):  # shapes only: a base model's weights would take half a gigabyte
        return model_class(shape)


# Operations


@pytest.mark.parametrize(
    ("main", "auxiliary", "vocab_size", "length", "megaflops", "savings"),
    [
        ((12, 256, 128), (12, 64, 128), 30_522, 128, (70, 65, 62), (8, 12)),
        ((12, 768, 768), (12, 256, 768), 30_522, 512, (668, 602, 570), (10, 15)),
        ((12, 768, 768), (4, 768, 768), 30_522, 128, (724, 593, 527), (18, 27)),
        ((12, 768, 768), (4, 768, 768), 64_000, 512, (803, 648, 570), (19, 29)),
        ((12, 768, 768), (4, 768, 768), 128_000, 512, None, (22, 33)),
    ],
    ids=["small, quarter width", "base, third of the width", "base, 4 x 768", "64,000 entries", "128,000 entries"],
)
def test_plans_match_the_table_of_the_method(
    main: tuple[int, int, int],
    auxiliary: tuple[int, int, int],
    vocab_size: int,
    length: int,
    megaflops: tuple[int, int, int] | None,
    savings: tuple[int, int],
) -> None:
    """Per token, masking 15 %: joint; frozen, online and with nothing to draw; and what both save, in percent. Of the
    auxiliary's last layer all is computed."""
    costs = [
        cost_of(
            on_paper(model_class, layers=layers, width=width, embedding=embedding, vocab_size=vocab_size),
            sequence_length=length,
            head_fraction=0.15,
        )._replace(skipped_flops=0.0)
        for model_class, (layers, width, embedding) in [(ElectraForPreTraining, main), (ElectraForMaskedLM, auxiliary)]
    ]
    online = plan_flops(costs[0], costs[1:], work=FROZEN, size=sized(1))
    offline = plan_flops(costs[0], costs[1:], work=FROZEN, size=sized(1, is_drawn_ahead=True, reused_fraction=1.0))
    joint = plan_flops(costs[0], costs[1:], work=JOINT, size=sized(1))
    assert online.joint_total == joint.total
    if megaflops is not None:
        assert [round(plan.total / 1e6) for plan in (joint, online, offline)] == list(megaflops)
    assert [round(100 * float(plan.saving_fraction or 0)) for plan in (online, offline)] == list(savings)


def test_the_last_layer_at_selected_positions_saves_another_1_4_points() -> None:
    main, auxiliary = (
        cost_of(on_paper(kind, layers=layers, width=768, embedding=768), sequence_length=128, head_fraction=0.15)
        for kind, layers in ((ElectraForPreTraining, 12), (ElectraForMaskedLM, 4))
    )
    whole, cut = (
        plan_flops(main, [each], work=FROZEN, size=sized(1))
        for each in (auxiliary._replace(skipped_flops=0.0), auxiliary)
    )
    assert cut.saving_fraction is not None and whole.saving_fraction is not None
    assert cut.saving_fraction - whole.saving_fraction == pytest.approx(0.014, abs=5e-4)
    assert cut.saving_fraction == pytest.approx(0.195, abs=5e-4)


def test_a_frozen_run_by_hand() -> None:
    """Main model 4 forward, 8 backward, of which the head 1 and 2; auxiliary 2 forward, its head 0.5; 100 tokens. Its
    own training, 3000, is for 5 runs."""
    size = sized(auxiliary_training_flops=3000.0, auxiliary_shared_by=5)
    plan = plan_flops(priced(4.0, head_flops=1.0), [priced(2.0, head_flops=0.5)], work=FROZEN, size=size)
    assert plan == (1400.0, 1200.0, 200.0, 0.0, 2000.0, 1800.0, 300.0, 50.0)
    assert plan.saving_fraction == pytest.approx(400 / 1800)
    assert plan.charged_saving_fraction == pytest.approx(-200 / 1800)


def test_a_joint_run_by_hand() -> None:
    """The generator goes backward, too: 6 per token; there is no training of before to charge."""
    for work in (JOINT, APART, METHOD_WORK["electra_gdes"]):
        plan = plan_flops(priced(4.0, head_flops=1.0), [priced(2.0, head_flops=0.5)], work=work, size=sized())
        assert plan == (1800.0, 1200.0, 600.0, 0.0, 1800.0, 1800.0, 300.0, 150.0)
        assert plan.saving_fraction == plan.charged_saving_fraction == 0.0


def test_runs_without_an_auxiliary_by_hand() -> None:
    for name in ("mlm", "uniform", "unigram", "bigram"):
        plan = plan_flops(priced(4.0, head_flops=1.0), [], work=METHOD_WORK[name], size=sized())
        assert plan == (1200.0, 1200.0, 0.0, 0.0, 1200.0, None, 300.0, 0.0)
        assert plan.saving_fraction is plan.charged_saving_fraction is None


def test_a_second_corruption_of_every_sequence_costs_a_second_pass_of_both_models() -> None:
    """2 × (12 + 2) per token; the joint run that it is set beside has one pass, 12 + 6."""
    plan = plan_flops(
        priced(4.0, head_flops=1.0), [priced(2.0, head_flops=0.5)], work=FROZEN, size=sized(num_corruptions=2)
    )
    assert plan == (2800.0, 2400.0, 400.0, 0.0, 2800.0, 1800.0, 600.0, 100.0)
    main = priced(1.0, activation_bytes=10.0)
    assert plan_memory(main, [], work=FROZEN, size=sized(num_corruptions=2)).activations == 20.0


def test_the_joint_run_beside_an_ensemble_has_one_generator() -> None:
    """Main 3 and 6, two auxiliaries of 1 each: 11 per token; jointly 9 and 1 + 2."""
    plan = plan_flops(priced(3.0), [priced(1.0), priced(1.0)], work=FROZEN, size=sized(1))
    assert (plan.total, plan.joint_total) == (11.0, 12.0)
    assert plan.saving_fraction == pytest.approx(1 / 12)


def test_several_auxiliaries_cost_what_each_of_them_costs() -> None:
    auxiliaries = [priced(2.0, head_flops=1.0), priced(1.0, head_flops=0.5)]
    plan = plan_flops(priced(4.0), auxiliaries, work=FROZEN, size=sized())
    assert (plan.auxiliary, plan.auxiliary_head) == (300.0, 150.0)


def test_an_auxiliary_whose_training_is_not_known_is_charged_as_unknown_and_not_as_nothing() -> None:
    plan = plan_flops(priced(4.0), [priced(2.0)], work=FROZEN, size=sized(auxiliary_training_flops=None))
    assert plan.total == 1400.0
    assert plan.charged is plan.charged_saving_fraction is None


def test_corruption_that_an_earlier_run_has_drawn_costs_nothing_again() -> None:
    """Main model 12 per token, auxiliary 2: 1200 and 200 for 100 tokens, of which three quarters are there already."""
    models: tuple[ModelCost, list[ModelCost]] = (priced(4.0, head_flops=1.0), [priced(2.0, head_flops=0.5)])
    ahead = {"work": FROZEN, "size": sized(is_drawn_ahead=True, reused_fraction=0.75)}
    plan = plan_flops(*models, **ahead)  # type: ignore[arg-type]
    assert plan == (1250.0, 1200.0, 50.0, 150.0, 1250.0, 1800.0, 300.0, 12.5)
    ahead["size"] = sized(is_drawn_ahead=True, reused_fraction=1.0)
    whole = plan_flops(*models, **ahead)  # type: ignore[arg-type]
    assert whole == (1200.0, 1200.0, 0.0, 200.0, 1200.0, 1800.0, 300.0, 0.0)
    assert whole.saving_fraction == pytest.approx(600 / 1800)
    joint = plan_flops(*models, work=JOINT, size=ahead["size"])  # type: ignore[arg-type]
    assert (joint.total, joint.auxiliary_reused) == (1800.0, 0.0)  # its generator moves on: nothing was drawn ahead


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    main=st.integers(1, 10**9),
    auxiliary=st.integers(1, 10**9),
    length=st.integers(0, 300),
    shared_by=st.integers(1, 50),
)
def test_freezing_pays_just_where_the_auxiliary_was_trained_for_less_than_two_thirds_of_the_runs_that_share_it(
    main: int, auxiliary: int, length: int, shared_by: int
) -> None:
    """length: of the auxiliary's own training, in percent of the run's tokens. Joint costs 3a, frozen a + 3a·f/K."""
    training = 3.0 * auxiliary * length  # for 100 tokens, like the run
    size = sized(auxiliary_training_flops=training, auxiliary_shared_by=shared_by)
    plan = plan_flops(priced(main), [priced(auxiliary)], work=FROZEN, size=size)
    assert plan.charged is not None and plan.joint_total is not None
    difference = 2 * shared_by * 100 - 3 * length  # of 2/3 · K and f, in whole numbers
    assert (plan.joint_total > plan.charged) == (difference > 0) or difference == 0
    assert plan.charged - plan.total == pytest.approx(training / shared_by)


def test_every_method_is_described_to_the_ledger() -> None:
    assert set(config.METHODS) <= set(METHOD_WORK)


# Memory


def test_memory_by_hand() -> None:
    """100 and 50 parameters with one table of 20 × 1 in both; 10 and 4 bytes kept per token, 3 of logits; 8 tokens."""
    main = priced(1.0, num_parameters=100, embedding_shape=(20, 1), activation_bytes=10.0)
    auxiliary = priced(1.0, num_parameters=50, embedding_shape=(20, 1), activation_bytes=4.0, logit_bytes=3.0)

    def plan(work: MethodWork, **changes: Any) -> Any:
        return plan_memory(main, [auxiliary], work=work, size=sized(tokens_per_pass=8, **changes))

    # Gradients take the place of activations: where there is one pass only the larger of the two counts.
    alone = (0.0, 0.0)
    assert plan(FROZEN) == (600.0, 400.0, 800.0, 80.0, 24.0, *alone, 600.0 + 800.0 + 400.0)
    assert plan(FROZEN, is_accumulated=True).peak == 600.0 + 800.0 + 400.0 + 80.0
    assert plan(FROZEN, is_drawn_ahead=True) == (400.0, 400.0, 800.0, 80.0, 0.0, *alone, 400.0 + 800.0 + 400.0)
    # A table that is a head's output matrix, too, has gradients from both, and their sum.
    assert plan(JOINT) == (520.0, 520.0, 1040.0, 112.0, 24.0, *alone, 520.0 + 1040.0 + 520.0 + 80.0)
    assert plan(JOINT, is_accumulated=True).peak == 520.0 + 1040.0 + 520.0 + 2 * 80.0
    assert plan(JOINT, is_drawn_ahead=True) == plan(JOINT)  # a generator is there all the time
    assert plan(APART) == (600.0, 600.0, 1200.0, 112.0, 24.0, *alone, 600.0 + 1200.0 + 600.0 + 2 * 80.0)
    # Without an auxiliary; a vocabulary head's logits count with their gradients. A teacher passes beside what is kept.
    assert plan_memory(auxiliary, [], work=MLM, size=sized(tokens_per_pass=8)) == (200, 200, 400, 32, 48, *alone, 960)
    teacher = main._replace(passing_bytes=50.0, logit_bytes=3.0)
    distilled = plan_memory(auxiliary, [teacher], work=METHOD_WORK["distilled"], size=sized(tokens_per_pass=8))
    assert distilled == (600, 200, 400, 32, 72, *alone, 600 + 400 + 32 + 24 + 400)


def test_memory_of_several_processes_by_hand() -> None:
    """Both have a table of 20 rows; the main model besides a layer of 7 x 10 and 10 single numbers, the auxiliary a
    layer of 6 x 5. A fourth of them: 5 + 2 x 10 + 3, and 5 + 2 x 5 numbers."""
    table = {"embedding_shape": (20, 1)}
    main = priced(
        1.0, num_parameters=100, rows=((20, 1), (7, 10), (10, 1)), layer_parameters=70, outer_parameters=30, **table
    )
    auxiliary = priced(
        1.0,
        num_parameters=50,
        rows=((20, 1), (6, 5)),
        layer_parameters=30,
        outer_parameters=20,
        logit_bytes=3.0,
        **table,
    )

    def plan(work: MethodWork, **changes: Any) -> Any:
        return plan_memory(main, [auxiliary], work=work, size=sized(tokens_per_pass=8, num_processes=4, **changes))

    # Replicas: gradients once more, in buckets.
    assert plan(FROZEN) == (600.0, 400.0, 800.0, 0.0, 24.0, 400.0, 0.0, 600.0 + 800.0 + 400.0 + 400.0)
    # Shards: the frozen auxiliary whole; table, single numbers and two layers gathered; all weights, to be saved.
    held, gathered = 4.0 * 28, 4.0 * (30 + 2 * 70)
    peak = 200.0 + 3 * held + 400.0 + 24.0 + gathered
    assert plan(FROZEN, is_sharded=True) == (200.0 + held, held, 2 * held, 0.0, 24.0, gathered, 400.0, peak)
    assert plan(FROZEN, is_sharded=True, is_accumulated=True).peak == peak + held
    held = 4.0 * (28 + 15 - 5)
    peak = 3 * held + 520.0 + 24.0 + gathered
    assert plan(JOINT, is_sharded=True) == (held, held, 2 * held, 0.0, 24.0, gathered, 520.0, peak)
    # Of a table that both have the first process holds 6 of 21 rows, once.
    uneven: dict[str, Any] = {"embedding_shape": (21, 1), "rows": ((21, 1),)}
    both = plan_memory(
        priced(1.0, **uneven), [priced(1.0, **uneven)], work=JOINT, size=sized(num_processes=4, is_sharded=True)
    )
    assert both.weights == 4.0 * 6
    # At the end of a backward pass weights in no layer and their gradient are there as a whole; before training all
    # weights are, twice.
    wide = main._replace(layer_parameters=1, outer_parameters=99)
    assert plan_memory(wide, [], work=FROZEN, size=sized(num_processes=4, is_sharded=True)).peak == (
        4.0 * (3 * 28 + 100 + 28 + 2 * 99)
    )
    many = sized(num_processes=20, is_sharded=True)
    flat = main._replace(layer_parameters=1, outer_parameters=1)
    assert plan_memory(flat, [], work=FROZEN, size=many).peak == 4.0 * 2 * 100


def test_tables_of_other_widths_are_not_shared() -> None:
    main = priced(1.0, num_parameters=100, embedding_shape=(20, 1))
    auxiliary = priced(1.0, num_parameters=50, embedding_shape=(10, 2))
    assert plan_memory(main, [auxiliary], work=JOINT, size=sized()).weights == 4 * 150


def test_large_logits_of_a_frozen_auxiliary_are_gone_before_the_main_model_keeps_anything() -> None:
    main, auxiliary = priced(1.0, activation_bytes=10.0), priced(1.0, logit_bytes=25.0)
    assert plan_memory(main, [auxiliary], work=FROZEN, size=sized()).peak == 25.0
    assert plan_memory(main, [auxiliary], work=JOINT, size=sized()).peak == 35.0


def test_a_wide_auxiliarys_own_pass_is_over_before_the_main_model_keeps_anything() -> None:
    main, wide = priced(1.0, activation_bytes=10.0), priced(1.0, logit_bytes=5.0, passing_bytes=25.0)
    assert plan_memory(main, [wide], work=FROZEN, size=sized(tokens_per_pass=2)).peak == 50.0


V, L, SEQUENCES, SELECTED = 500, 32, 32, 5


def models(architecture: str, dropout: float) -> tuple[Any, Any, PretrainConfig]:
    """A main model of three layers, an auxiliary of one, and their config."""
    values = {
        "architecture": architecture, "hidden_size": 64, "embedding_size": 64, "num_heads": 4, "num_layers": 3,
        "intermediate_size": 256, "dropout": dropout, "sequence_length": L, "precision": "fp32",
    }  # fmt: skip
    deep, shallow = (PretrainConfig(**{**values, "num_layers": layers}) for layers in (3, 1))
    shapes = [encoder_config(each, vocab_size=V, special_ids=SPECIAL_IDS) for each in (deep, shallow)]
    return build_discriminator(shapes[0], seed=0), build_masked_lm(shapes[1], seed=1), deep


def a_batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    is_selected = torch.zeros(SEQUENCES, L, dtype=torch.bool)
    is_selected[:, 1 : 1 + SELECTED] = True
    uniforms = torch.rand(SEQUENCES, L, generator=rng, dtype=torch.float64)
    return Batch(torch.randint(5, V, (SEQUENCES, L), generator=rng), is_selected, uniforms)


def allocated_at_peak(work: Callable[[], Any]) -> int:
    """Bytes that torch's allocator had given out at the worst moment, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def held_bytes(modules: list[Any], optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Of parameters, each once, and of the optimizer's state but for its counters of steps."""
    parameters = {id(each): each.numel() * each.element_size() for module in modules for each in module.parameters()}
    state = [each for values in optimizer.state.values() for name, each in values.items() if name != "step"]
    return sum(parameters.values()), sum(each.numel() * each.element_size() for each in state)


@pytest.mark.parametrize(
    "architecture, dropout, num_passes",
    [("electra", 0.0, 1), ("electra", 0.1, 2), ("modernbert", 0.1, 1), ("modernbert", 0.0, 2)],
)
@pytest.mark.parametrize("name", [*METHODS, "distilled", "consistent"])
def test_planned_memory_is_that_of_a_real_step_or_up_to_a_tenth_less(
    name: str, architecture: str, dropout: float, num_passes: int
) -> None:
    """Weights, gradients and state to the byte. What lacks at the peak is what a layer's own backward pass needs; the
    fewer the layers, the more that is: a tenth of the single one of the masked language model."""
    discriminator, masked_lm, shape = models(architecture, dropout)
    if name == "distilled":
        teacher = build_masked_lm(discriminator.config, seed=2)
        method: Any = DistilledMaskedLM(masked_lm, teacher, share=0.5, temperature=1.0, mask_token_id=MASK).train()
    elif name == "consistent":
        method = method_of("fast_electra", discriminator, masked_lm, consistency_weight=1.0).train()
    else:
        method = method_of(name, discriminator, masked_lm).train()
    optimizer, batch = build_optimizer(method, shape), a_batch()
    totals = Totals(batch.input_ids.numel(), int(batch.is_selected.sum()))
    gradients = []

    def step() -> None:
        for part in batch.split(SEQUENCES // num_passes):
            method.loss(part, totals, progress=0.5, stats={}).backward()
        gradients.append(sum(each.grad.numel() * 4 for each in method.parameters() if each.grad is not None))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # makes the optimizer's state
    at_peak = allocated_at_peak(step)
    main, auxiliaries = (discriminator, [masked_lm])
    if name in ("masked_lm", "distilled"):
        main, auxiliaries = (masked_lm, [teacher] if name == "distilled" else [])
    weights, state = held_bytes([main, *auxiliaries], optimizer)
    kept = {"sequence_length": L, "head_fraction": SELECTED / L}
    planned = plan_memory(
        cost_of(main, **kept, drops=dropout > 0, is_fused=False),  # type: ignore[arg-type]
        [cost_of(each, **kept) for each in auxiliaries],  # type: ignore[arg-type]
        work=METHOD_WORK[{"masked_lm": "mlm", "consistent": "fast_electra"}.get(name, name)],
        size=sized(
            tokens_per_pass=SEQUENCES * L // num_passes,
            is_accumulated=num_passes > 1,
            num_corruptions=2 if name == "consistent" else 1,
        ),
    )
    assert (planned.weights, planned.gradients, planned.optimizer_state) == (weights, gradients[-1], state)
    assert 0.9 * (weights + state + at_peak) < planned.peak <= weights + state + at_peak
