"""A small flow to be deployed, and the command that does it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from warm_python import interpreter

from steps.command import main
from steps.deploy import PLACES

FLOW = """
from metaflow import Config, FlowSpec, schedule, step, trigger
DECORATOR
class TinyFlow(FlowSpec):
    profile = Config("profile", default_value="{}")
    defaults = Config("defaults", default_value="{}")

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    TinyFlow()
"""
WHERE = {"corpus": "s3://bucket/text/", "store": "s3://bucket/store"}


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Make the folder the current one, with parameters for a schedule in weekly.json; what `deploy` starts is warm."""
    monkeypatch.setattr(sys, "executable", interpreter())
    monkeypatch.setenv("METAFLOW_USER", "tester")
    monkeypatch.setenv("METAFLOW_DEFAULT_METADATA", "local")
    monkeypatch.chdir(folder)
    (folder / "weekly.json").write_text(json.dumps({**WHERE, **more}))


def deploy_tiny_flow(
    capfd: pytest.CaptureFixture[str], scheduler: str, decorator: str, *words: str, code: int = 0
) -> str:
    """Deploy it with a decorator; returns all that was printed in one line, after a look at the exit code."""
    Path("tiny_flow.py").write_text(FLOW.replace("DECORATOR", decorator))
    profile = ROOT / "infra" / "profiles" / f"{PLACES[scheduler]}.json"
    known = ["--to", scheduler, "--profile", str(profile), "--defaults", "weekly.json"]
    returned = main(["deploy", "tiny_flow.py", *known, *words])
    shown = capfd.readouterr()
    assert returned == code, shown
    return re.sub(r"\s+", " ", shown.out + shown.err)
