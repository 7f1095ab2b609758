"""Walks a flow's own steps in this process: linear steps, a fan-out of one step and its join, and a choice.

What a scheduler does besides (processes, pods, the datastore, cards) is not here; a run of it costs half a minute less.
"""

import contextlib
import copy
import importlib.util
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

import parameters

_CONFIGS: dict[str, Any] = {"profile": {}, "deployment": {}, "defaults": {}}


def load_flow(file: str, name: str = "") -> ModuleType:
    """The module of a file of `flows/`, loaded anew, by another name if one is given."""
    spec = importlib.util.spec_from_file_location(name or file, ROOT / "flows" / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Task:
    """What a step's function gets as self."""

    def __init__(self, artifacts: Mapping[str, Any], functions: Mapping[str, Any], **own: Any) -> None:
        self.__dict__.update({**copy.deepcopy(dict(artifacts)), **own})
        self.__dict__["_functions"] = functions
        self.__dict__["_next"] = None

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_functions"]:
            return name
        raise AttributeError(name)

    def next(self, *names: Any, **how: str) -> None:
        self.__dict__["_next"] = (names, how)

    def merge_artifacts(self, inputs: "list[Task]", include: list[str]) -> None:
        self.__dict__.update({name: copy.deepcopy(getattr(inputs[0], name)) for name in include})

    def artifacts(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_functions", "_next", "input", "index")
        }


class Walk:
    """One run: its steps in order, their tasks, the artifacts of `end`, and what was put on cards."""

    def __init__(self, module: ModuleType, flow: type, given: Mapping[str, Any], run_id: str) -> None:
        self.steps: list[str] = []
        self.tasks: dict[str, list[Task]] = {}
        self.pages: list[Any] = []
        self._functions = {name: getattr(flow, name) for name in dir(flow) if hasattr(getattr(flow, name), "is_step")}
        self._current = SimpleNamespace(
            flow_name=flow.__name__,
            run_id=run_id,
            origin_run_id=None,
            pathspec=f"{flow.__name__}/{run_id}/step/1",
            parameter_names=[*given, *_CONFIGS],
            card=self.pages,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "current", self._current)
            patch.setattr(module, "link_run", lambda plan: None)
            patch.setattr(module, "told", contextlib.nullcontext)  # errors as they are, not as Metaflow shows them
            patch.setattr(parameters, "current", self._current)
            self.data = SimpleNamespace(**self._walk({**given, **_CONFIGS}))

    def _run(self, name: str, task: Task, *inputs: list[Task]) -> Task:
        self.steps.append(name)
        self._functions[name](task, *inputs)
        self.tasks.setdefault(name, []).append(task)
        return task

    def _walk(self, given: Mapping[str, Any]) -> dict[str, Any]:
        task = self._run("start", Task(given, self._functions))
        while task._next is not None:
            names, how = task._next
            if "foreach" in how:
                items = getattr(task, how["foreach"])
                assert items, "Metaflow refuses a fan-out over nothing"
                tasks = [
                    Task(task.artifacts(), self._functions, input=item, index=index, lost=None)
                    for index, item in enumerate(items)
                ]
                done = [self._run(names[0], each) for each in tasks]
                task = self._run(done[0]._next[0][0], Task({}, self._functions), done)
                continue
            name = names[0][getattr(task, how["condition"])] if "condition" in how else names[0]
            task = self._run(name, Task(task.artifacts(), self._functions))
        return task.artifacts()
