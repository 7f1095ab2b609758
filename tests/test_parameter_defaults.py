"""Parameters of runs that give none: a schedule's."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Workspace

import parameters
from fast_electra_core.config import PretrainConfig
from fast_electra_core.errors import ConfigError
from steps.config import resolve_pretrain
from steps.parameter_defaults import parse_defaults


def test_defaults_are_fields_of_the_config_with_their_types() -> None:
    text = '{"corpus": "s3://bucket/text", "num_steps": 7, "learning_rate": 1, "untrained_baseline": false}'
    assert parse_defaults(text, PretrainConfig) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{corpus: x}", "the defaults are not JSON: .*line 1 column 2"),
        ("[]", "must be an object of parameters, got \\[\\]"),
        ('{"num_step": 7}', "Did you mean 'num_steps'"),
        ('{"num_steps": "7"}', "the defaults' num_steps must be of type int, got '7'"),
        ('{"num_steps": true}', "must be of type int, got True"),
        ('{"untrained_baseline": 1}', "must be of type bool, got 1"),
        ('{"corpus": null}', "the defaults' corpus must be of type str, got None"),
    ],
)
def test_defaults_that_cannot_be_meant_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_defaults(text, PretrainConfig)


def test_a_run_takes_what_it_is_not_given_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("preset", "seeds", "num_steps", "profile", "defaults")
    monkeypatch.setattr(parameters, "current", SimpleNamespace(parameter_names=names))
    kept = {"preset": "large", "seeds": 3}
    flow = SimpleNamespace(preset="tiny", seeds=None, num_steps=None, profile={"runs_on": "local"}, defaults=kept)
    assert parameters.given_to(flow) == {"preset": "tiny", "seeds": 3, "num_steps": None}


def test_defaults_that_a_flow_cannot_have_stop_it_at_once(tmp_path: Path) -> None:
    words = ("--config-value", "defaults", '{"x": 1}', "run")
    refused = Workspace(tmp_path).run("pretrain_flow.py", *words, succeeds=False)
    assert "a name among the defaults must be one of" in refused and "Traceback" not in refused


def test_the_tracking_server_is_given_or_set_or_beside_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path))
    assert resolve_pretrain({}).tracking_uri == "sqlite:///mlflow.db"
    (tmp_path / "config.json").write_text('{"MLFLOW_TRACKING_URI": "http://of-the-file:5000"}')
    assert resolve_pretrain({}).tracking_uri == "http://of-the-file:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of-the-environment:5000")
    assert resolve_pretrain({}).tracking_uri == "http://of-the-environment:5000"
    assert resolve_pretrain({"tracking_uri": "sqlite:///mine.db"}).tracking_uri == "sqlite:///mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:password@server")
    with pytest.raises(ConfigError, match="holds a password, which would be kept"):
        resolve_pretrain({})
