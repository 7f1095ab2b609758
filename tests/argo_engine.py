"""Argo Workflows at work: runs a workflow template that the double of a cluster has, each container as a pod of it.

What it does is what Argo documents of those parts that Metaflow uses: directed acyclic graphs (`depends`, `when`,
`withParam`, the first failure ends it), JobSets as resources, exit handlers of steps, retries, parameters, hooks of a
workflow. Of expressions it knows Metaflow's four kinds. Whatever else comes is an error, and no guess.
"""

import base64
import json
import re
import time
import uuid
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from argo_schemas import without_nulls
from kubernetes_api import JOBSETS, NAMESPACE, Cluster
from kubernetes_pods import Pod, now

REDIRECT = '''
import builtins, os

_open = builtins.open

def open(file, *args, **more):
    """A pod's own /mnt/out, where every pod has one."""
    if isinstance(file, str) and file.startswith("/mnt/out/"):
        file = file.replace("/mnt/out", os.environ["OUT_OF_THE_POD"], 1)
    return _open(file, *args, **more)

builtins.open = open
'''
"""A sitecustomize for the pods' Python."""
_PLACE = re.compile(r"\{\{(?!=)([^{}]+)\}\}")
_BASE64 = re.compile(r"\{\{=toBase64\((\w+)\.parameters\['([^']+)'\]\)\}\}")
_CHOICE = re.compile(
    r"\{\{=\(tasks\['([^']+)'\]\.status == 'Succeeded' \? tasks\['\1'\]\.outputs\.parameters\['([^']+)'\] : nil\)"
    r" == '([^']+)'\}\}"
)
_ONE_LESS = re.compile(r"\{\{=sprig\.int\(sprig\.sub\(sprig\.int\(inputs\.parameters\['([^']+)'\]\),1\)\)\}\}")
_NUMBER = re.compile(r"\{\{=asInt\(inputs\.parameters\.(\w+)\)\}\}")
_LABEL = re.compile(r"\{\.metadata\.labels\.(\w+)\}")
_OF_A_TASK = re.compile(r"([\w-]+)\.(Succeeded|Failed|Errored|Skipped|Omitted)")


class ArgoPod(Pod):
    """Its /tmp and /mnt/out are its own."""

    @property
    def out(self) -> Path:
        return self.log.parent / "out"

    def _whole_environment(self, image: Mapping[str, str], own: Mapping[str, str], folder: Path) -> dict[str, str]:
        (folder / "out").mkdir()
        return super()._whole_environment(image, own, folder) | {"OUT_OF_THE_POD": str(folder / "out")}

    def _command(self, own: Mapping[str, str]) -> list[str]:
        return [word.replace("/tmp/mf-input", f"{self.log.parent}/mf-input") for word in super()._command(own)]


class Node(NamedTuple):
    """What has become of a task."""

    status: str
    """Succeeded, Failed, Error, Skipped (`when`) or Omitted (`depends`)."""
    outputs: dict[str, str]


class Workflow:
    """One run of the template `name`; `run` runs it to its end. lost: steps of which the first pod is killed as soon as
    it is there."""

    def __init__(self, cluster: Cluster, name: str, *, lost: Collection[str] = ()) -> None:
        self._cluster, self._lost = cluster, set(lost)
        self._spec = without_nulls(cluster.argo_kept["workflowtemplates"][name]["spec"])
        self._templates = {template["name"]: template for template in self._spec["templates"]}
        self.name = f"{name}-{uuid.uuid4().hex[:5]}"
        self._scope = {
            "workflow.name": self.name,
            "workflow.namespace": NAMESPACE,
            "workflow.creationTimestamp": now(),
        }
        for parameter in self._spec.get("arguments", {}).get("parameters", []):
            self._scope[f"workflow.parameters.{parameter['name']}"] = parameter["value"]
        self.pods: list[ArgoPod] = []
        self.hooks: list[str] = []
        """The hooks that were run, by name."""

    def run(self) -> str:
        """Succeeded, Failed or Error."""
        status = self._run(self._spec["entrypoint"], {}).status
        self._scope |= {"workflow.status": status, "workflow.failures": "[]"}
        for name, hook in self._spec.get("hooks", {}).items():
            if name != "exit" and self._holds(
                hook["expression"].replace("workflow.status", "{{workflow.status}}"), self._scope
            ):
                self.hooks.append(name)
                self._run(hook["template"], {})
        # Where there are both, Argo takes `onExit`, and no hook of the name `exit`.
        handler = self._spec.get("onExit") or self._spec.get("hooks", {}).get("exit", {}).get("template")
        if handler and self._run(handler, {}).status not in ("Succeeded", "Skipped") and status == "Succeeded":
            return "Error"
        return status

    def _run(self, name: str, inputs: Mapping[str, str]) -> Node:
        template = self._templates[name]
        scope = {**self._scope, **{f"inputs.parameters.{key}": value for key, value in inputs.items()}}
        if "dag" in template:
            return self._run_graph(template, scope)
        if "steps" in template:
            for together in template["steps"]:
                for each in together:
                    if self._holds(each.get("when", "true"), scope):
                        node = self._run(each["template"], {})
                        if node.status != "Succeeded":
                            return node
            return Node("Succeeded", {})
        if "container" in template:
            return self._run_container(template, scope)
        if "resource" in template:
            return self._run_resource(template, scope)
        raise NotImplementedError(f"{name} needs Argo's agent, which nothing here stands for: {sorted(template)}")

    def _run_graph(self, template: Mapping[str, Any], scope: dict[str, str]) -> Node:
        left = {task["name"]: task for task in template["dag"]["tasks"]}
        done: dict[str, Node] = {}
        while left and not any(node.status in ("Failed", "Error") for node in done.values()):
            ready = [task for task in left.values() if not self._needed(task) & left.keys()]
            task = ready[0]
            done[task["name"]] = self._run_task(task, done, scope)
            scope[f"tasks.{task['name']}.status"] = done[task["name"]].status
            for key, value in done[task["name"]].outputs.items():
                scope[f"tasks.{task['name']}.outputs.parameters.{key}"] = value
            del left[task["name"]]
        failed = [node.status for node in done.values() if node.status in ("Failed", "Error")]
        outputs = {
            each["name"]: self._filled(each["valueFrom"]["parameter"], scope)
            for each in template.get("outputs", {}).get("parameters", [])
            if not failed
        }
        return Node(failed[0] if failed else "Succeeded", outputs)

    def _needed(self, task: Mapping[str, Any]) -> set[str]:
        return {name for name, _ in _OF_A_TASK.findall(task.get("depends", ""))}

    def _run_task(self, task: Mapping[str, Any], done: Mapping[str, Node], scope: Mapping[str, str]) -> Node:
        depends = _OF_A_TASK.sub(lambda found: str(done[found[1]].status == found[2]).lower(), task.get("depends", ""))
        if depends and not self._holds(depends, scope):
            return Node("Omitted", {})
        if "withParam" not in task:
            return self._run_once(task, scope)
        items = json.loads(self._filled(task["withParam"], scope))
        with ThreadPoolExecutor(2) as pool:
            nodes = list(pool.map(lambda item: self._run_once(task, {**scope, "item": json.dumps(item)}), items))
        worst = [node.status for node in nodes if node.status in ("Failed", "Error")]
        skipped = nodes and all(node.status == "Skipped" for node in nodes)
        return Node(worst[0] if worst else "Skipped" if skipped else "Succeeded", {})

    def _run_once(self, task: Mapping[str, Any], scope: Mapping[str, str]) -> Node:
        if not self._holds(task.get("when", "true"), scope):
            return Node("Skipped", {})
        given = task.get("arguments", {}).get("parameters", [])
        return self._run(task["template"], {each["name"]: self._filled(each["value"], scope) for each in given})

    def _run_container(self, template: Mapping[str, Any], scope: Mapping[str, str]) -> Node:
        """Its pod, and the pods that try again."""
        for attempt in range(int(template.get("retryStrategy", {}).get("limit", 0)) + 1):
            text = json.dumps(template["container"])
            retries = {"retries": str(attempt)} if "retryStrategy" in template else {}
            container = json.loads(self._filled(text, {**scope, **retries}, quoted=True))
            pod = self._start({**template, "container": {"name": "main", **container}})
            if pod.phase == "Succeeded":
                paths = {
                    each["name"]: each["valueFrom"]["path"]
                    for each in template.get("outputs", {}).get("parameters", [])
                }
                return Node(
                    "Succeeded", {name: (pod.out / Path(path).name).read_text() for name, path in paths.items()}
                )
        return Node("Failed", {})

    def _run_resource(self, template: Mapping[str, Any], scope: Mapping[str, str]) -> Node:
        """The JobSet of its manifest, and those that try again; until one says of itself how it has ended."""
        resource = template["resource"]
        assert resource["action"] == "create" and resource["successCondition"] == "status.terminalState == Completed"
        for attempt in range(int(template.get("retryStrategy", {}).get("limit", 0)) + 1):
            manifest = self._filled(self._filled(resource["manifest"], scope), {"retries": str(attempt)})
            body = yaml.safe_load(manifest)
            jobset = self._cluster.answer("POST", f"/apis/{JOBSETS}/v1alpha2/namespaces/{NAMESPACE}/jobsets", {}, body)
            while not (state := jobset["status"].get("terminalState")):
                time.sleep(0.2)
            if state == "Completed":
                paths = {each["name"]: each["valueFrom"]["jsonPath"] for each in template["outputs"]["parameters"]}
                labels = jobset["metadata"]["labels"]
                return Node("Succeeded", {name: labels[_LABEL.fullmatch(path)[1]] for name, path in paths.items()})  # type: ignore[index]
        return Node("Failed", {})

    def _start(self, template: Mapping[str, Any]) -> ArgoPod:
        spec = {
            "containers": [template["container"]], "restartPolicy": "Never",
            **{name: template[name] for name in ("serviceAccountName", "volumes", "nodeSelector") if name in template},
        }  # fmt: skip
        pod = self._cluster.start_pod({"metadata": template.get("metadata", {}), "spec": spec}, self.name)
        assert isinstance(pod, ArgoPod)
        self.pods.append(pod)
        if (step := pod.annotations.get("metaflow/step_name")) in self._lost:
            self._lost.remove(step)
            pod.kill()
        pod.join()
        return pod

    def _holds(self, condition: str, scope: Mapping[str, str]) -> bool:
        """As Argo reads a condition: words are strings but for true and false."""
        filled = self._filled(condition, scope).replace("||", " or ").replace("&&", " and ")
        known = {"true": "True", "false": "False", "or": "or", "and": "and"}
        found = re.sub(r"'?([\w./-]+)'?", lambda word: known.get(word[1], repr(word[1])), filled)
        return bool(eval(found.strip(), {"__builtins__": {}}))

    def _filled(self, text: str, scope: Mapping[str, str], *, quoted: bool = False) -> str:
        """The text with the values in place of what is in braces; what has no value yet stays, as in Argo. quoted: the
        text is JSON."""

        def written(value: str) -> str:
            return json.dumps(value)[1:-1] if quoted else value

        def choice(found: re.Match[str]) -> str:
            is_done = scope[f"tasks.{found[1]}.status"] == "Succeeded"
            return str(is_done and scope[f"tasks.{found[1]}.outputs.parameters.{found[2]}"] == found[3]).lower()

        text = _CHOICE.sub(choice, text)
        text = _BASE64.sub(
            lambda found: base64.b64encode(scope[f"{found[1]}.parameters.{found[2]}"].encode()).decode(), text
        )
        text = _ONE_LESS.sub(lambda found: str(int(scope[f"inputs.parameters.{found[1]}"]) - 1), text)
        text = _NUMBER.sub(lambda found: str(int(scope[f"inputs.parameters.{found[1]}"])), text)
        assert "{{=" not in text, text[text.index("{{=") :][:200]
        return _PLACE.sub(lambda found: written(scope[found[1]]) if found[1] in scope else found[0], text)
