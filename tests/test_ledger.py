"""The ledger of a flow run: planned from configs and models on paper, and set beside what was measured, by hand."""

from pathlib import Path
from typing import Any

import pytest
from toys import save_auxiliary
from transformers import AutoModelForMaskedLM, ElectraConfig

from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import AuxiliaryError
from fast_electra_core.method_building import build_method
from fast_electra_core.models import build_discriminator, encoder_config
from steps import ledger
from steps.config import resolve_auxiliary, resolve_pretrain
from steps.ledger import Circumstances, account, plan_auxiliary
from steps.register import training_tags
from steps.store import Store
from steps.tokenizer import special_ids

KEY = "auxiliaries/toy"
TOKENS = 10 * 8 * 32  # of tiny: steps, sequences, tokens of each
# tiny's main model: two layers of 32, feed-forward 64, 32 tokens; a head of 32 × 32 and 32.
MAIN = 2 * (8 * 32 * 32 + 4 * 32 * 64 + 4 * 32 * 32) + 2 * 32 * 32 + 2 * 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With an auxiliary of one layer of 8, feed-forward 12; its tokenizer lies beside it."""
    folder = tmp_path_factory.mktemp("ledger")
    store = Store(str(folder / "store"))
    store.put_folder(save_auxiliary(folder / "toy", ["a few words of text " * 20]), KEY)
    return store


@pytest.fixture(scope="module")
def auxiliary_flops(store: Store) -> float:
    """Forward, per token; the head on 15 % of them."""
    vocab_size = ElectraConfig.from_pretrained(store.get_folder(KEY)).vocab_size
    return 8 * 8 * 8 + 4 * 8 * 12 + 4 * 32 * 8 + 0.15 * (2 * 8 * 8 + 2 * 8 * vocab_size)


@pytest.fixture(scope="module")
def frozen_flops(auxiliary_flops: float) -> float:
    """Of its only layer just keys and values for all tokens, the rest where they are selected."""
    return auxiliary_flops - 0.85 * (4 * 8 * 8 + 4 * 8 * 12 + 4 * 32 * 8)


def tiny(**changes: Any) -> PretrainConfig:
    return resolve_pretrain({"preset": "tiny", **changes})


def candidate(**tags: str) -> dict[str, Any]:
    return {"address": "toy", "key": KEY, "registry": {"tags": tags} if tags else None}


def plan_pretraining(config: PretrainConfig, auxiliary: dict[str, Any], store: Store, *known: Any) -> dict[str, Any]:
    """Without an initial model."""
    circumstances = Circumstances(*known)
    return ledger.plan_pretraining(config, auxiliary, store, initial_model=None, circumstances=circumstances)


def test_a_frozen_run_is_planned_from_config_and_candidate(
    store: Store, auxiliary_flops: float, frozen_flops: float
) -> None:
    cost = plan_pretraining(tiny(), candidate(**{"training.total_flops": "3e6"}), store)
    flops = cost["flops"]
    assert cost["num_tokens"] == TOKENS
    assert flops["per_token"] == pytest.approx(3 * MAIN + frozen_flops)
    assert flops["auxiliary"] == pytest.approx(TOKENS * frozen_flops)
    assert flops["total"] == flops["main"] + flops["auxiliary"]
    assert flops["charged"] == flops["total"] + 3e6
    assert flops["joint_total"] == pytest.approx(TOKENS * 3 * (MAIN + auxiliary_flops))
    assert cost["memory"]["auxiliary"] < cost["memory"]["auxiliary_if_joint"]


def test_an_auxiliary_with_dropout_is_charged_for_the_whole_of_its_last_layer(
    store: Store, auxiliary_flops: float, frozen_flops: float
) -> None:
    """Dropout never falls to 0 altogether, and with it no position can be left out."""
    assert frozen_flops < auxiliary_flops
    flops = plan_pretraining(tiny(auxiliary_dropout=0.3), candidate(), store)["flops"]
    assert flops["auxiliary"] == pytest.approx(TOKENS * auxiliary_flops)


def test_a_joint_run_is_planned_from_config_and_candidate(store: Store, auxiliary_flops: float) -> None:
    """The auxiliary gives its shape alone, so its own training is not charged."""
    cost = plan_pretraining(tiny(method="electra"), candidate(), store)
    flops, memory = cost["flops"], cost["memory"]
    assert flops["total"] == flops["joint_total"] == flops["charged"]
    assert flops["total"] == pytest.approx(TOKENS * 3 * (MAIN + auxiliary_flops))
    assert flops["auxiliary_training"] == cost["own_training_money"] == 0.0
    assert memory["auxiliary"] > 0
    assert memory["auxiliary_if_joint"] is None


def test_runs_that_share_an_auxiliary_share_its_training(store: Store) -> None:
    flops = plan_pretraining(tiny(auxiliary_shared_by=4), candidate(**{"training.total_flops": "3e6"}), store)["flops"]
    assert flops["charged"] == flops["total"] + 3e6 / 4
    assert flops["auxiliary_training"] == 3e6


@pytest.mark.parametrize("tagged", [candidate(), candidate(masked_loss="4.2")], ids=["not registered", "no such tag"])
def test_what_an_auxiliarys_training_has_cost_is_unknown_where_no_tag_says_it(
    tagged: dict[str, Any], store: Store
) -> None:
    cost = plan_pretraining(tiny(), tagged, store)
    assert cost["flops"]["auxiliary_training"] is cost["flops"]["charged"] is cost["own_training_money"] is None
    assert cost["flops"]["charged_saving_fraction"] is None
    assert cost["flops"]["saving_fraction"] > 0


def test_a_joint_run_that_starts_from_the_auxiliarys_weights_is_charged_for_their_training(store: Store) -> None:
    config = tiny(method="electra", warm_start="embeddings")
    assert plan_pretraining(config, candidate(), store)["flops"]["charged"] is None
    flops = plan_pretraining(config, candidate(**{"training.total_flops": "3e6"}), store)["flops"]
    assert flops["charged"] == flops["total"] + 3e6


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf"])
def test_a_tag_that_is_no_amount_is_refused(text: str, store: Store) -> None:
    expected = rf"auxiliary toy: its version's tag training.total_flops must be a number > 0, got '{text}'\. Correct it"
    with pytest.raises(AuxiliaryError, match=expected):
        plan_pretraining(tiny(), candidate(**{"training.total_flops": text}), store)


@pytest.mark.parametrize("fraction", [0.15, 0.3])
def test_an_auxiliarys_training_is_planned_from_its_config_and_tokenizer(fraction: float, store: Store) -> None:
    config = resolve_auxiliary({"preset": "tiny", "mask_fraction": fraction})
    vocab_size = ElectraConfig.from_pretrained(store.get_folder(KEY)).vocab_size
    cost = plan_auxiliary(config, store, tokenizer_key=KEY, teacher=None)
    layer = 8 * 32 * 32 + 4 * 32 * 64 + 4 * 32 * 32
    per_token = 3 * (layer + fraction * (2 * 32 * 32 + 2 * 32 * vocab_size))
    assert cost["flops"]["total"] == pytest.approx(TOKENS * per_token)
    assert cost["flops"]["joint_total"] is None
    assert cost["address"] is None


def test_an_auxiliarys_training_is_planned_for_the_device_and_the_processes_that_it_has(store: Store) -> None:
    config = resolve_auxiliary({"preset": "tiny", "dropout": 0.1})
    on_gpu, on_cpu = (
        plan_auxiliary(config, store, tokenizer_key=KEY, teacher=None, circumstances=Circumstances(0.0, device, 2))
        for device in ("cuda", "cpu")
    )
    assert on_gpu["num_processes"] == on_cpu["num_processes"] == 2
    assert on_gpu["memory"]["activations"] < on_cpu["memory"]["activations"]


def test_a_student_has_its_teachers_tokens(store: Store, tmp_path: Path) -> None:
    """Of which there may be more than its tokenizer knows: rows of 32 and a bias."""
    ElectraConfig(vocab_size=1000, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    store.put_folder(tmp_path, "models/teacher")
    config, teacher = resolve_auxiliary({"preset": "tiny"}), {**candidate(), "key": "models/teacher"}
    alone, taught = (plan_auxiliary(config, store, tokenizer_key=KEY, teacher=each) for each in (None, teacher))
    vocab_size = ElectraConfig.from_pretrained(store.get_folder(KEY)).vocab_size
    assert taught["parameters"]["main"] - alone["parameters"]["main"] == (1000 - vocab_size) * 33


def test_a_teacher_costs_its_forward_passes_and_is_charged_for_its_own_training(
    store: Store, frozen_flops: float
) -> None:
    config = resolve_auxiliary({"preset": "tiny"})
    alone = plan_auxiliary(config, store, tokenizer_key=KEY, teacher=None)
    tags = {"training.total_flops": "3e6", "training.money": "0.5"}
    taught = plan_auxiliary(config, store, tokenizer_key=KEY, teacher=candidate(**tags))
    flops, before = taught["flops"], alone["flops"]
    assert flops["total"] == pytest.approx(before["total"] + TOKENS * frozen_flops)
    assert (flops["charged"], flops["joint_total"]) == (flops["total"] + 3e6, None)
    assert (alone["own_training_money"], taught["own_training_money"]) == (0.0, 0.5)
    assert (taught["beside"], taught["address"]) == ("teacher", "toy")
    assert taught["memory"]["auxiliary"] > 0 and taught["memory"]["auxiliary_if_joint"] is None
    unknown = plan_auxiliary(config, store, tokenizer_key=KEY, teacher=candidate())
    assert unknown["flops"]["charged"] is None


def test_a_masked_language_model_is_set_beside_a_joint_run_of_its_size(store: Store, auxiliary_flops: float) -> None:
    cost = plan_pretraining(tiny(method="mlm"), candidate(), store)
    vocab_size = ElectraConfig.from_pretrained(store.get_folder(KEY)).vocab_size
    encoder = MAIN - (2 * 32 * 32 + 2 * 32)
    assert cost["flops"]["per_token"] == pytest.approx(3 * (encoder + 0.15 * (2 * 32 * 32 + 2 * 32 * vocab_size)))
    assert cost["flops"]["joint_total"] == pytest.approx(TOKENS * 3 * (MAIN + auxiliary_flops))
    assert cost["flops"]["auxiliary"] == cost["memory"]["auxiliary"] == 0


def test_a_main_model_that_starts_from_another_is_priced_as_that_one(store: Store, tmp_path: Path) -> None:
    """It may have more tokens than the auxiliary draws from; its size is the config's."""
    larger = {"num_hidden_layers": 2, "hidden_size": 32, "embedding_size": 32, "intermediate_size": 64}
    ElectraConfig(vocab_size=1000, num_attention_heads=2, **larger).save_pretrained(tmp_path)
    store.put_folder(tmp_path, "models/toy")
    ours, theirs = (
        ledger.plan_pretraining(tiny(), candidate(), store, initial_model=initial)
        for initial in (None, {"key": "models/toy"})
    )
    vocab_size = ElectraConfig.from_pretrained(store.get_folder(KEY)).vocab_size
    assert theirs["parameters"]["main"] - ours["parameters"]["main"] == (1000 - vocab_size) * 32
    assert theirs["flops"]["total"] == ours["flops"]["total"]


def test_an_ensemble_costs_what_its_members_cost_and_all_their_training(store: Store, frozen_flops: float) -> None:
    tagged = [candidate(**{"training.total_flops": amount}) for amount in ("3e6", "4e6")]
    cost = plan_pretraining(tiny(), {**tagged[0], "address": "toy,toy", "members": tagged}, store)
    assert cost["flops"]["per_token"] == pytest.approx(3 * MAIN + 2 * frozen_flops)
    assert cost["flops"]["charged"] == cost["flops"]["total"] + 7e6
    joint = plan_pretraining(tiny(method="electra"), candidate(), store)["memory"]["auxiliary"]
    assert cost["memory"]["auxiliary_if_joint"] == joint  # that run has one generator
    unknown = plan_pretraining(tiny(), {**tagged[0], "members": [tagged[0], candidate()]}, store)
    assert unknown["flops"]["charged"] is None


def test_a_run_with_a_consistency_term_is_set_beside_a_joint_run_without(
    store: Store, auxiliary_flops: float, frozen_flops: float
) -> None:
    for method, drawn in (("fast_electra", frozen_flops), ("uniform", 0.0)):
        flops = plan_pretraining(tiny(method=method, consistency_weight=1.0), candidate(), store)["flops"]
        assert flops["per_token"] == pytest.approx(2 * (3 * MAIN + drawn))
        assert flops["joint_total"] == pytest.approx(TOKENS * 3 * (MAIN + auxiliary_flops))


def test_the_memory_of_a_joint_run_is_that_of_a_run_without_a_consistency_term(store: Store) -> None:
    """The second pass is this run's, and none of a generator's doing, nor of the frozen auxiliary's, which adds its
    weights."""
    once, twice = (plan_pretraining(tiny(consistency_weight=weight), candidate(), store) for weight in (0.0, 1.0))
    assert once["memory"]["auxiliary_if_joint"] == twice["memory"]["auxiliary_if_joint"] > 0
    assert once["memory"]["auxiliary"] == twice["memory"]["auxiliary"] == 4 * once["parameters"]["auxiliary"]


def test_a_step_of_several_passes_holds_gradients_beside_the_activations_of_one(store: Store) -> None:
    """In a step of one pass they come as activations go."""
    whole, halves = (plan_pretraining(tiny(micro_batch_size=size), candidate(), store)["memory"] for size in (None, 4))
    assert halves["activations"] == whole["activations"] / 2
    assert whole["peak"] == whole["weights"] + whole["optimizer_state"] + whole["activations"]
    assert halves["peak"] == halves["weights"] + halves["optimizer_state"] + halves["gradients"] + halves["activations"]


@pytest.mark.parametrize("method", ["fast_electra", "electra", "electra_gdes", "uniform", "unigram", "bigram", "mlm"])
def test_the_joint_run_beside_a_run_with_activation_checkpointing_has_it_too(
    method: str, store: Store, auxiliary_flops: float
) -> None:
    """The main model's layers come once more, their projection (none here) and head do not; a generator, which has no
    dropout, keeps its activations."""
    config = tiny(method=method, activation_checkpointing=True, embedding_size=8 if method == "electra_gdes" else 32)
    flops = plan_pretraining(config, candidate(), store)["flops"]
    head, projection = 2 * 32 * 32 + 2 * 32, 2 * 8 * 32 if method == "electra_gdes" else 0
    expected = 3 * (MAIN + projection + auxiliary_flops) + MAIN - head
    assert flops["joint_total"] == pytest.approx(TOKENS * expected)


def test_a_generator_that_shares_its_embeddings_adds_only_its_own_parameters(store: Store) -> None:
    """As torch counts what would train: it lists a shared matrix once."""
    drawn = AutoModelForMaskedLM.from_pretrained(store.get_folder(KEY))
    for method in ("electra", "electra_decoupled", "electra_gdes"):
        config = tiny(method=method, embedding_size=8)
        shape = encoder_config(
            config, vocab_size=drawn.config.vocab_size, special_ids=special_ids(store.get_folder(KEY))
        )
        main, generator = build_discriminator(shape, seed=0), type(drawn)(drawn.config)
        trained = build_method(config, main, generator, mask_token_id=1)
        parameters = plan_pretraining(config, candidate(), store)["parameters"]
        assert sum(parameters.values()) == sum(each.numel() for each in trained.parameters())


def test_electras_own_count_is_there_where_it_is_defined(store: Store) -> None:
    """Half of the count's backward pass lacks; look-ups and single numbers come on top."""
    flops, more = (plan_pretraining(tiny(mask_fraction=each), candidate(), store)["flops"] for each in (0.15, 0.3))
    assert TOKENS * 2 * MAIN < flops["by_google"] < TOKENS * 3 * MAIN
    assert more["by_google"] - flops["by_google"] > more["total"] - flops["total"] > 0
    assert plan_pretraining(tiny(architecture="modernbert"), candidate(), store)["flops"]["by_google"] is None


def test_electras_own_count_has_the_whole_of_an_auxiliary_with_dropout_and_no_layer_twice(
    store: Store, auxiliary_flops: float, frozen_flops: float
) -> None:
    plain, dropping, again = (
        plan_pretraining(tiny(**changes), candidate(), store)["flops"]["by_google"]
        for changes in ({}, {"auxiliary_dropout": 0.3}, {"activation_checkpointing": True})
    )
    assert dropping - plain == pytest.approx(TOKENS * (auxiliary_flops - frozen_flops))
    assert again == plain


# What was measured

CURVE = [
    {"step": 5, "tokens_per_second": 640.0},
    {"step": 7, "heldout_auc": 0.6},  # scored, but not logged
    {"step": 10, "tokens_per_second": 320.0},
]
SPENT = {"starting": 0.25, "data": 0.5, "scoring": 1.0, "checkpoints": 0.75, "loading": 1.0}
RESULT = {"curve": CURVE, "seconds": 8.0, "memory_bytes": 5000, "spent": SPENT, "peak_flops_per_second": 1e9}


def test_time_speed_and_money_are_those_of_the_training_by_hand(store: Store) -> None:
    """5 steps of 256 tokens at 640 a second, then 5 at 320: 2 s and 4 s; 9 s with that of loading, at 400 an hour
    1."""
    config = tiny(price_per_hour=400.0, auxiliary_shared_by=2)
    tags = {"training.total_flops": "3e6", "training.money": "0.5"}
    cost = account(plan_pretraining(config, candidate(**tags), store), config, RESULT)
    assert cost["measured"] == pytest.approx(
        {
            "seconds": 9.0, "training_seconds": 6.0, "drawing_seconds": 0.0, "memory": 5000,
            "data_seconds": 0.5, "scoring_seconds": 1.0, "checkpoint_seconds": 0.75, "starting_seconds": 1.25,
            "tokens_per_second": 2560 / 6, "flops_per_second": cost["flops"]["total"] / 6,
            "peak_share": cost["flops"]["total"] / 6 / 1e9, "money": 1.0, "money_charged": 1.25,
        }
    )  # fmt: skip
    assert training_tags(cost) == {"training.total_flops": cost["flops"]["total"], "training.money": 1.0}


def test_without_a_price_nothing_is_said_in_money(store: Store) -> None:
    cost = account(plan_pretraining(tiny(), candidate(), store), tiny(), RESULT)
    assert cost["measured"]["money"] is cost["measured"]["money_charged"] is None
    assert training_tags(cost) == {"training.total_flops": cost["flops"]["total"]}


def test_money_is_not_charged_where_the_auxiliarys_is_not_known(store: Store) -> None:
    config = tiny(price_per_hour=1.0)
    cost = account(plan_pretraining(config, candidate(**{"training.total_flops": "3e6"}), store), config, RESULT)
    assert cost["measured"]["money"] == pytest.approx(9 / 3600)
    assert cost["measured"]["money_charged"] is None


def test_drawing_ahead_counts_in_time_and_money_and_not_in_the_speed_of_training(
    store: Store, frozen_flops: float
) -> None:
    """A quarter was drawn by an earlier run, the rest in 9 s by other tasks."""
    config = tiny(corruption="offline", price_per_hour=400.0)
    cost = account(plan_pretraining(config, candidate(), store, 0.25), config, RESULT, drawing_seconds=9.0)
    flops, measured = cost["flops"], cost["measured"]
    assert flops["auxiliary_reused"] == pytest.approx(TOKENS * frozen_flops / 4)
    assert flops["auxiliary"] == pytest.approx(TOKENS * frozen_flops * 3 / 4)
    assert measured["flops_per_second"] == pytest.approx(TOKENS * 3 * MAIN / 6)
    assert (measured["seconds"], measured["money"]) == (18.0, pytest.approx(2.0))
    online = plan_pretraining(tiny(), candidate(), store)["memory"]
    assert cost["memory"]["weights"] < online["weights"]
    assert cost["memory"]["auxiliary"] == 0


def test_attention_with_dropout_on_a_cpu_is_planned_with_its_probabilities(store: Store) -> None:
    """`start` does not know the device and plans for a GPU; the training does."""
    config = tiny(dropout=0.1)
    at_start, on_gpu, on_cpu = (
        plan_pretraining(config, candidate(), store, *known)["memory"]["activations"]
        for known in ((), (0.0, "cuda:0"), (0.0, "cpu"))
    )
    assert at_start == on_gpu < on_cpu
    plain = tiny(dropout=0.0)
    without = [plan_pretraining(plain, candidate(), store, 0.0, device)["memory"] for device in ("cuda:0", "cpu")]
    assert without[0] == without[1]


def test_each_of_several_processes_is_planned_with_its_rows_and_its_shard(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny has 8 sequences: three processes have at most 3 each."""
    config = tiny(processes_per_node=3)
    alone, replica = (plan_pretraining(each, candidate(), store) for each in (tiny(), config))
    shard = plan_pretraining(tiny(processes_per_node=3, sharding="fsdp"), candidate(), store)
    assert [cost["num_processes"] for cost in (alone, replica, shard)] == [1, 3, 3]
    assert [cost["is_sharded"] for cost in (alone, replica, shard)] == [False, False, True]
    memory = [cost["memory"] for cost in (alone, replica, shard)]
    assert [each["activations"] / memory[0]["activations"] for each in memory] == pytest.approx([1, 3 / 8, 3 / 8])
    assert [each["gradients"] / memory[0]["gradients"] for each in memory] == pytest.approx(
        [1, 1, 1 / 3], rel=0.03
    )  # rows rounded up
    assert (memory[1]["exchange"], memory[2]["saved"]) == (memory[0]["gradients"], memory[0]["gradients"])
    micro = plan_pretraining(tiny(processes_per_node=3, micro_batch_size=4), candidate(), store)["memory"]
    assert micro == memory[1]  # it splits no process's rows
    assert [cost["flops"]["total"] for cost in (replica, shard)] == [alone["flops"]["total"]] * 2
    assert plan_pretraining(config, candidate(), store, 0.0, "cuda", 2)["num_processes"] == 2  # what was measured
    # Where the config does not say it, as many as this machine has GPUs; shards, two at least.
    assert plan_pretraining(tiny(num_nodes=2), candidate(), store)["num_processes"] == 2
    assert plan_pretraining(tiny(sharding="fsdp"), candidate(), store)["num_processes"] == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert plan_pretraining(tiny(num_nodes=2), candidate(), store)["num_processes"] == 8


def test_an_auxiliarys_own_training_is_accounted_alike(store: Store) -> None:
    config = resolve_auxiliary({"preset": "tiny", "price_per_hour": 400.0})
    cost = account(plan_auxiliary(config, store, tokenizer_key=KEY, teacher=None), config, RESULT)
    assert cost["measured"]["flops_per_second"] == cost["flops"]["total"] / 6
    assert cost["measured"]["money"] == cost["measured"]["money_charged"] == pytest.approx(1.0)
