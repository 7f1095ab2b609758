"""Claims about steps/register.py and the model side of steps/tracking/, on one real SQLite registry."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import new_database
from mlflow_server import lose_first_answer
from registry_toys import client
from toys import change_tensors

from fast_electra_core.errors import AuxiliaryError, TrackingError
from fast_electra_core.method_knobs import METHODS
from steps import register, tracking
from steps.command import main
from steps.gates import LINEAGE_TAGS, SCHEDULE_TAGS
from steps.tracking import champions, registry

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "of",
    "function",
]
LINEAGE = {name: f"value of {name}" for name in LINEAGE_TAGS}
BETTER = {"masked_loss": 4.5, "unigram_loss": 6.5, "masked_accuracy": 0.25, "unigram_accuracy": 0.05}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    uri = new_database(tmp_path_factory.mktemp("registry"))
    schedule = {"schedule": "exponential", "temperature_start": 2.0, "temperature_decay": 0.1}
    return {"tracking_uri": uri, **schedule, "temperature_end": 1.0, "method": "fast_electra"}


@pytest.fixture(autouse=True)
def empty_registry(config: dict[str, Any]) -> Iterator[None]:
    tracking.connect(config["tracking_uri"])
    yield
    for model in client().search_registered_models():
        client().delete_registered_model(model.name)
        ledger = champions._find_ledger(model.name)
        if ledger:
            client().delete_run(ledger)


@pytest.fixture
def run_id(config: dict[str, Any]) -> str:
    return tracking.start_parent(config["tracking_uri"], "tests", name="flow", tags={}, params={"seed": 3})


def save_model(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A tiny ELECTRA and its tokenizer, as save_pretrained writes them."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model_config = transformers.ElectraConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    getattr(transformers, kind)(model_config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    transformers.ElectraTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("discriminator"), "ElectraForPreTraining")


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("masked_lm"), "ElectraForMaskedLM")


def new_run(config: dict[str, Any]) -> str:
    return tracking.start_parent(config["tracking_uri"], "tests", name="flow", tags={}, params={})


# What a version is


def test_a_registered_discriminator_loads_with_its_head_tokenizer_signature_and_example(
    config: dict[str, Any], run_id: str, discriminator: Path
) -> None:
    import mlflow
    import torch
    import transformers

    what: dict[str, Any] = {"folder": discriminator, "run_id": run_id, "tags": LINEAGE}
    made = register.register_discriminator(config, metrics={"glue.average": 0.5}, **what)

    pipeline = mlflow.transformers.load_model("models:/fast-electra/1")
    assert isinstance(pipeline.model, transformers.ElectraForPreTraining)
    original = transformers.ElectraForPreTraining.from_pretrained(discriminator)
    for name, weight in pipeline.model.state_dict().items():
        assert torch.equal(weight, original.state_dict()[name]), name
    logits = mlflow.pyfunc.load_model("models:/fast-electra/1").predict(["the cat sat"])
    ids = torch.tensor([[2, 5, 6, 7, 3]])  # [CLS] the cat sat [SEP]
    assert logits == pytest.approx(original.eval()(ids).logits[0].tolist(), abs=1e-6)
    info = mlflow.models.get_model_info(f"models:/fast-electra/{made['version']}")
    assert info.signature.inputs.input_types()[0].name == "string"
    assert info.signature.outputs.inputs[0].shape == (-1,)
    assert info.saved_input_example_info is not None


def test_a_main_model_that_is_no_detector_is_registered_as_what_it_is(
    config: dict[str, Any], run_id: str, masked_lm: Path
) -> None:
    import mlflow
    import transformers

    tags, metrics = {**LINEAGE, "method": "mlm"}, {"heldout_masked_loss": 4.5}
    made = register.register_discriminator(
        {**config, "method": "mlm"}, folder=masked_lm, run_id=run_id, tags=tags, metrics=metrics
    )

    pipeline = mlflow.transformers.load_model("models:/fast-electra/1")
    assert isinstance(pipeline.model, transformers.ElectraForMaskedLM)
    answer = mlflow.pyfunc.load_model("models:/fast-electra/1").predict(["the [MASK] sat"])
    assert answer[0] in VOCABULARY
    version = client().get_model_version("fast-electra", made["version"])
    assert {name: version.tags[name] for name in SCHEDULE_TAGS} == dict.fromkeys(SCHEDULE_TAGS, "not used")
    assert version.description.startswith(
        "A text encoder pre-trained by masked language modelling (BERT). A pipeline fi"
    )
    assert "replaced" not in version.description


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_words_for_what_it_makes(method: str, masked_lm: Path) -> None:
    what = register._pipeline_of(method, masked_lm)
    assert ("looks replaced" in what["summary"]) == (what["task"] == "feature-extraction") == (method != "mlm")


def test_a_registered_auxiliary_fills_masks(config: dict[str, Any], run_id: str, masked_lm: Path) -> None:
    import mlflow

    register.register_auxiliary(config, folder=masked_lm, run_id=run_id, tags={}, metrics=BETTER)

    answer = mlflow.pyfunc.load_model("models:/fast-electra-auxiliary@champion").predict(["the [MASK] sat"])
    assert answer[0] in VOCABULARY


def test_a_version_holds_the_very_files_that_were_given_and_no_pickle(
    config: dict[str, Any], run_id: str, discriminator: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(discriminator, folder)
    (folder / "training_args.bin").write_bytes(b"pickle")
    what: dict[str, Any] = {"folder": folder, "run_id": run_id, "tags": LINEAGE}
    made = register.register_discriminator(config, metrics={}, **what)

    root = Path(client().get_logged_model(made["model_id"]).artifact_location)
    assert (root / "model" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert {path.suffix for path in root.rglob("*")} & {".bin", ".pkl", ".pt", ".pth", ".pickle"} == set()
    names = {path.name for path in (root / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md"} <= names
    requirements = (root / "requirements.txt").read_text()
    assert "transformers==" in requirements
    assert "+cpu" not in requirements
    assert "scratch" not in (root / "MLmodel").read_text()
    assert str(tmp_path) not in (root / "MLmodel").read_text()


def test_a_version_leads_to_its_run_its_metrics_and_its_lineage(
    config: dict[str, Any], run_id: str, discriminator: Path
) -> None:
    tracking.log_metrics(run_id, [{"step": 10, "rtd_auc": 0.5}, {"step": 20, "rtd_auc": 0.75}])
    what: dict[str, Any] = {"folder": discriminator, "run_id": run_id, "tags": LINEAGE}
    made = register.register_discriminator(config, metrics={"glue.average": 0.5, "rtd_auc": 0.75}, **what)

    version = client().get_model_version("fast-electra", made["version"])
    assert version.run_id == run_id
    for name in LINEAGE_TAGS:
        assert version.tags[name] == LINEAGE[name]
    schedule = {name: version.tags[name] for name in SCHEDULE_TAGS}
    assert schedule == {
        "schedule": "exponential",
        "temperature_start": "2.0",
        "temperature_decay": "0.1",
        "temperature_end": "1.0",
    }
    model = client().get_logged_model(made["model_id"])
    assert str(model.status) == "READY"
    assert model.source_run_id == run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "fast-electra", "version": 1}]
    assert model.params["seed"] == "3"
    assert {metric.key: metric.value for metric in model.metrics} == {"glue.average": 0.5, "rtd_auc": 0.75}
    curve = [(item.step, item.value) for item in client().get_metric_history(run_id, "rtd_auc")]
    assert curve == [(10, 0.5), (20, 0.75)]  # no point was added
    assert [output.model_id for output in client().get_run(run_id).outputs.model_outputs] == [model.model_id]
    assert client().get_run(run_id).info.status == "RUNNING"  # the flow goes on
    about = client().get_registered_model("fast-electra").description
    assert about.startswith("A text encoder pre-trained by replaced token detection (Fast-ELECTRA).")
    assert about.endswith("The alias champion is of the version to use, where there is one.")
    card = (Path(model.artifact_location) / "model_card.md").read_text()
    assert "| rtd_auc | 0.7500 |" in card
    assert "| corpus.digest | value of corpus.digest |" in card


def test_a_retried_register_step_makes_no_second_version(
    config: dict[str, Any], run_id: str, discriminator: Path
) -> None:
    what: dict[str, Any] = {"folder": discriminator, "run_id": run_id, "tags": LINEAGE, "metrics": {}}
    first = register.register_discriminator(config, **what)
    second = register.register_discriminator(config, **what)

    assert (first["version"], second["version"]) == ("1", "1")
    assert len(client().search_model_versions("name='fast-electra'")) == 1


def test_a_version_whose_creation_was_not_answered_is_there_once(
    config: dict[str, Any], run_id: str, discriminator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_first_answer(monkeypatch, "create_model_version")
    made = register.register_discriminator(config, folder=discriminator, run_id=run_id, tags=LINEAGE, metrics={})
    (version,) = client().search_model_versions("name='fast-electra'")
    assert (made["version"], str(version.version)) == ("1", "1")
    assert version.tags["corpus.digest"] == LINEAGE["corpus.digest"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks a .safetensors file"),
        ("tokenizer.json", "lacks a tokenizer"),
    ],
)
def test_an_incomplete_folder_is_not_registered(
    config: dict[str, Any], run_id: str, discriminator: Path, tmp_path: Path, missing: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(discriminator, folder)
    (folder / missing).unlink()

    with pytest.raises(TrackingError, match=message):
        register.register_discriminator(config, folder=folder, run_id=run_id, tags=LINEAGE, metrics={})


def test_a_broken_upload_leaves_a_failed_model_and_no_version(
    config: dict[str, Any], run_id: str, discriminator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(registry, "save_transformers_model", full)
    with pytest.raises(OSError, match="no space left"):
        register.register_discriminator(config, folder=discriminator, run_id=run_id, tags=LINEAGE, metrics={})

    found = client().search_logged_models(
        [client().get_run(run_id).info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    assert [str(model.status) for model in found] == ["FAILED"]
    assert client().search_registered_models() == []


# Who is champion


@pytest.mark.parametrize(("loss", "aliases"), [(6.4, ["champion"]), (6.5, []), (6.6, []), (float("nan"), [])])
def test_an_auxiliary_is_champion_exactly_if_it_beats_the_unigram(
    config: dict[str, Any], run_id: str, masked_lm: Path, loss: float, aliases: list[str]
) -> None:
    metrics = {**BETTER, "masked_loss": loss}
    made = register.register_auxiliary(config, folder=masked_lm, run_id=run_id, tags={}, metrics=metrics)

    assert made["aliases"] == aliases
    info = tracking.model_version_info("models:/fast-electra-auxiliary/1")
    assert info["aliases"] == aliases
    assert info["tags"]["promotion.reason"].startswith("no alias: ") == (not aliases)
    assert "below the unigram's 6.5000" in info["tags"]["promotion.reason"]


def test_the_newest_auxiliary_that_beats_the_unigram_is_champion(config: dict[str, Any], masked_lm: Path) -> None:
    for loss in (4.0, 5.0, 7.0):
        metrics = {**BETTER, "masked_loss": loss}
        register.register_auxiliary(config, folder=masked_lm, run_id=new_run(config), tags={}, metrics=metrics)

    assert tracking.aliases("fast-electra-auxiliary") == {"champion": "2"}


def test_an_auxiliary_with_weights_that_are_not_finite_gets_no_alias(
    config: dict[str, Any], run_id: str, masked_lm: Path, tmp_path: Path
) -> None:
    folder = break_one_weight(masked_lm, tmp_path / "broken")
    made = register.register_auxiliary(config, folder=folder, run_id=run_id, tags={}, metrics=BETTER)

    assert (made["aliases"], made["reason"]) == ([], "no alias: weights are not finite")


def test_a_retried_step_does_not_take_the_alias_back_from_a_later_auxiliary(
    config: dict[str, Any], masked_lm: Path
) -> None:
    first = new_run(config)
    for run_id in (first, new_run(config), first):
        register.register_auxiliary(config, folder=masked_lm, run_id=run_id, tags={}, metrics=BETTER)

    assert tracking.aliases("fast-electra-auxiliary") == {"champion": "2"}


def test_a_registered_main_model_has_no_alias_yet(config: dict[str, Any], run_id: str, discriminator: Path) -> None:
    made = register.register_discriminator(config, folder=discriminator, run_id=run_id, tags=LINEAGE, metrics={})

    assert tracking.aliases("fast-electra") == {}
    assert "promotion.reason" not in tracking.model_version_info(f"models:/fast-electra/{made['version']}")["tags"]


def break_one_weight(folder: Path, destination: Path) -> Path:
    shutil.copytree(folder, destination)
    change_tensors(destination, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(float("inf")))
    return destination


# Fetching a version


def test_a_downloaded_version_has_the_hugging_face_files(
    config: dict[str, Any], run_id: str, masked_lm: Path, tmp_path: Path
) -> None:
    import transformers

    register.register_auxiliary(config, folder=masked_lm, run_id=run_id, tags={"a": 1}, metrics=BETTER)

    folder = tracking.download_model("models:/fast-electra-auxiliary@champion", tmp_path / "new" / "model")

    assert folder == tmp_path / "new" / "model"
    assert (folder / "model.safetensors").read_bytes() == (masked_lm / "model.safetensors").read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the cat")["input_ids"] == [2, 5, 6, 3]
    transformers.AutoModelForMaskedLM.from_pretrained(folder)
    info = tracking.model_version_info("models:/fast-electra-auxiliary/1")
    assert (info["name"], info["version"], info["run_id"]) == ("fast-electra-auxiliary", "1", run_id)
    assert info["tags"]["a"] == "1"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]  # nothing half-made is left


def test_a_version_that_mlflow_itself_logged_can_be_downloaded(masked_lm: Path, tmp_path: Path) -> None:
    import mlflow
    import transformers

    model = transformers.ElectraForMaskedLM.from_pretrained(masked_lm)
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked_lm)
    parts = {"model": model, "tokenizer": tokenizer}
    mlflow.transformers.save_model(parts, str(tmp_path / "m"), task="fill-mask", pip_requirements=["torch"])
    client().create_registered_model("theirs")
    client().create_model_version("theirs", str(tmp_path / "m"))

    folder = tracking.download_model("models:/theirs/1", tmp_path / "fetched")

    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_versions_without_a_usable_model_are_refused(tmp_path: Path) -> None:
    for name, files in {"empty": ["notes.txt"], "pickled": ["config.json", "pytorch_model.bin"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
        client().create_registered_model(name)
        client().create_model_version(name, str(tmp_path / name))

    with pytest.raises(AuxiliaryError, match="models:/empty/1 holds no transformers model"):
        tracking.download_model("models:/empty/1", tmp_path / "a")
    with pytest.raises(AuxiliaryError, match="pickled weights are not read"):
        tracking.download_model("models:/pickled/1", tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nothing@champion", r"no registered model 'nothing' at sqlite.*registered: bare, here\. flows/"),
        ("models:/hare@champion", r"no registered model 'hare' at .*\. Did you mean 'here' or 'bare'\? flows/"),
        (
            "models:/here@challenger",
            r"here has no alias 'challenger'; its aliases: champion \(version 2\); its versions: 1, 2\. Name a "
            "version: models:/here/2$",
        ),
        (
            "models:/here/7",
            r"here has no version 7; its aliases: champion \(version 2\); its versions: 1, 2\. Name a version: "
            "models:/here/2$",
        ),
        ("models:/bare@champion", "bare has no alias 'champion'; its aliases: none; its versions: none$"),
        ("models:/bare/1", "bare has no version 1; its aliases: none; its versions: none$"),
        ("models:/here", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/here/Production", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_address_that_leads_nowhere_lists_what_there_is(uri: str, message: str, tmp_path: Path) -> None:
    client().create_registered_model("here")
    client().create_registered_model("bare")
    for _ in range(2):
        client().create_model_version("here", str(tmp_path))
    client().set_registered_model_alias("here", "champion", "2")

    with pytest.raises(TrackingError, match=message):
        tracking.model_version_info(uri)


# What `fast-electra promote` makes of an auxiliary


def promote(config: dict[str, Any], *words: str) -> int:
    return main(["promote", "models:/fast-electra-auxiliary/1", *words, "--tracking_uri", config["tracking_uri"]])


def registered_auxiliary(config: dict[str, Any], folder: Path, loss: float) -> dict[str, Any]:
    """Version 1 or the next one, with this held-out loss; the unigram's is 6.5."""
    metrics = {**BETTER, "masked_loss": loss}
    made = register.register_auxiliary(config, folder=folder, run_id=new_run(config), tags={}, metrics=metrics)
    return tracking.model_version_info(f"models:/fast-electra-auxiliary/{made['version']}")


def test_an_auxiliary_that_does_not_beat_the_unigram_is_not_promoted_and_nothing_of_it_changes(
    config: dict[str, Any], masked_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = registered_auxiliary(config, masked_lm, 6.75)

    assert promote(config, "--corpus_licence", "CC0-1.0") == 1
    shown = capsys.readouterr().out
    assert "version 1: not promoted: held-out masked loss 6.7500 is not below the unigram's 6.5000" in shown
    assert "fast-electra promote models:/fast-electra-auxiliary/1 --force" in shown
    assert tracking.model_version_info("models:/fast-electra-auxiliary/1") == before


def test_an_auxiliary_that_beats_the_unigram_is_champion_again_when_it_is_promoted(
    config: dict[str, Any], masked_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for loss in (4.0, 5.0):
        registered_auxiliary(config, masked_lm, loss)
    assert tracking.aliases("fast-electra-auxiliary") == {"champion": "2"}

    assert promote(config, "--corpus_licence", "CC0-1.0") == 0
    reason = "held-out masked loss 4.0000 is below the unigram's 6.5000"
    assert capsys.readouterr().out == f"fast-electra-auxiliary version 1: {reason}\n"
    assert tracking.aliases("fast-electra-auxiliary") == {"champion": "1"}
    tags = tracking.model_version_info("models:/fast-electra-auxiliary/1")["tags"]
    assert (tags["promotion.reason"], tags["corpus.licence"]) == (reason, "CC0-1.0")
    assert [name for name in tags if name.startswith("gate")] == []
    assert [entry.version for entry in champions.throne("fast-electra-auxiliary").entries] == ["1", "2", "1"]


def test_an_auxiliary_without_finite_weights_is_not_promoted_but_by_force(
    config: dict[str, Any], masked_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered_auxiliary(config, break_one_weight(masked_lm, tmp_path / "broken"), 4.0)

    assert promote(config) == 1
    assert "version 1: not promoted: weights are not finite" in capsys.readouterr().out
    assert promote(config, "--force") == 0
    assert promote(config) == 0  # champion it is, if not by this
    assert tracking.aliases("fast-electra-auxiliary") == {"champion": "1"}


def test_what_an_auxiliary_cannot_be_judged_by_is_refused(
    config: dict[str, Any], masked_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered_auxiliary(config, masked_lm, 4.0)

    assert promote(config, "--waive_gates", "majority") == 2
    assert "waive_gates is for main models, got 'majority'" in capsys.readouterr().err
    assert promote(config, "--promotion_margin", "0.1") == 2
    assert "promotion_margin is for main models, got 0.1" in capsys.readouterr().err
    client().delete_model_version_tag("fast-electra-auxiliary", "1", "unigram_loss")
    assert promote(config) == 2
    assert "does not say its held-out loss: the tag unigram_loss is missing" in capsys.readouterr().err


# A version that is not there


def test_where_no_auxiliary_is_champion_the_error_says_why_and_which_version_to_name(
    config: dict[str, Any], masked_lm: Path
) -> None:
    registered_auxiliary(config, masked_lm, 6.75)

    with pytest.raises(TrackingError) as caught:
        tracking.model_version_info("models:/fast-electra-auxiliary@champion")
    assert str(caught.value) == (
        "fast-electra-auxiliary has no alias 'champion'; its aliases: none; its versions: 1. Name a version: "
        "models:/fast-electra-auxiliary/1 (no alias: held-out masked loss 6.7500 is not below the unigram's 6.5000; "
        "train it longer, by a higher --num_steps, or on more text)"
    )
    with pytest.raises(TrackingError, match=r"its versions: 1\. Name a version: models:/fast-electra-auxiliary/1$"):
        tracking.model_version_info("models:/fast-electra-auxiliary/9")
