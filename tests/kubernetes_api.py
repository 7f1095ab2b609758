"""A test double of a Kubernetes API server, over real HTTP, for the calls that Metaflow and the preflight make.

Jobs and JobSets that it is given must satisfy the strict schemas; their pods run at once, as processes. What it does
not know it answers with 404, and `unknown` remembers it.
"""

import json
import re
import shutil
import threading
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
from kubernetes_argo import GROUP as ARGO
from kubernetes_argo import Argo
from kubernetes_looks import Looks, Refused, found
from kubernetes_pods import Pod, now, validate_job

NAMESPACE, TOKEN = "training", "token-of-the-tests"
JOBSETS = "jobset.x-k8s.io"
_ROUTE = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[a-z]+))?"
)


class Cluster(Argo, Looks):
    """What the server knows. Tests set the public things; everything lies in the namespace `training`."""

    def __init__(self, folder: Path, *, image: Mapping[str, str], pod: type[Pod] = Pod) -> None:
        super().__init__()
        self.folder = folder
        self.image = dict(image)
        """The environment that every image brings."""
        self.pod = pod
        """What its pods are."""
        self.version = "1.37"
        self.has_jobsets = True
        self.jobset_trouble = ""
        """What the JobSet controller's webhook says of every JobSet; empty: nothing."""
        self.pod_trouble: dict[str, Any] = {}
        """The status that every pod has, which then does not run; empty: they run."""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, Pod] = {}
        self.unknown: list[str] = []
        self.url = ""
        self._lock = threading.RLock()

    def kubeconfig(self) -> str:
        """A file that leads a client here."""
        path = self.folder / "kubeconfig"
        context = {"cluster": "double", "user": "tester", "namespace": NAMESPACE}
        named = {
            "clusters": [{"name": "double", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": TOKEN}}],
            "contexts": [{"name": "double", "context": context}],
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "double", **named}))
        return str(path)

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Any:
        """What the server says."""
        if path in ("/version", "/version/"):
            major, minor = self.version.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{self.version}.0", "gitCommit": "",
                    "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}  # fmt: skip
        if path == f"/apis/{JOBSETS}/" and self.has_jobsets:
            version = {"groupVersion": f"{JOBSETS}/v1alpha2", "version": "v1alpha2"}
            return {"kind": "APIGroup", "name": JOBSETS, "versions": [version], "preferredVersion": version}
        if path == f"/apis/{JOBSETS}/v1alpha2" and self.has_jobsets:
            jobsets = {"name": "jobsets", "singularName": "", "namespaced": True, "kind": "JobSet", "verbs": ["create"]}
            return {"kind": "APIResourceList", "groupVersion": f"{JOBSETS}/v1alpha2", "resources": [jobsets]}
        if path == f"/apis/{ARGO}/v1alpha1" and self.argo_resources:
            return self.argo_served()
        route = _ROUTE.fullmatch(path)
        verb = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}[method]
        if route is None:
            self.unknown.append(f"{method} {path}")
            raise Refused(404, f"the server could not find the requested resource {path}")
        if verb == "get" and not route["name"]:
            verb = "list"
        resource = "/".join(filter(None, (route["resource"], route["subresource"])))
        if (verb, resource) in self.denied:
            raise Refused(403, f'{resource} is forbidden: User "tester" cannot {verb} resource "{resource}"')
        if route["group"] == ARGO and resource in self.argo_kept:
            with self._lock:
                return self.argo_answer(verb, resource, route["name"], query, body)
        handler = getattr(self, f"_{verb}_{resource.replace('/', '_')}", None)
        if handler is None or (resource == "jobsets" and not self.has_jobsets):
            self.unknown.append(f"{method} {path}")
            raise Refused(404, "the server could not find the requested resource")
        with self._lock:
            return handler(name=route["name"], query=query, body=body)

    # Jobs

    def _create_jobs(self, *, body: Any, **_: Any) -> Any:
        _must_be_valid(body)
        metadata = body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
        body["metadata"] = {**metadata, "name": name, "namespace": NAMESPACE, "uid": str(uuid.uuid4())}
        body["spec"].setdefault("parallelism", 1)
        body["status"] = {"active": 1, "startTime": now()}
        self.jobs[name] = body

        def done(pod: Pod) -> None:
            with self._lock:
                ending = "succeeded" if pod.phase == "Succeeded" else "failed"
                body["status"] = {ending: 1, "startTime": body["status"]["startTime"]}

        labels = {"job-name": name, "batch.kubernetes.io/job-name": name}
        self._start(body["spec"]["template"], f"{name}-{uuid.uuid4().hex[:5]}", labels=labels, done=done)
        return body

    def _get_jobs(self, *, name: str, **_: Any) -> Any:
        return found(self.jobs, name, "jobs.batch")

    def _patch_jobs(self, *, name: str, body: Any, **_: Any) -> Any:
        job = found(self.jobs, name, "jobs.batch")
        job["spec"] |= body["spec"]
        if job["spec"]["parallelism"] == 0:
            self._kill("job-name", name)
        return job

    def _delete_jobs(self, *, name: str, **_: Any) -> Any:
        found(self.jobs, name, "jobs.batch")
        self._kill("job-name", name)
        return self.jobs.pop(name)

    # JobSets: one pod per job, which is what Metaflow asks for

    def _create_jobsets(self, *, body: Any, query: Mapping[str, str], **_: Any) -> Any:
        name, subdomain = body["metadata"]["name"], body["metadata"]["name"]
        body["metadata"] = {**body["metadata"], "namespace": NAMESPACE, "uid": str(uuid.uuid4())}
        for replicated in body["spec"]["replicatedJobs"]:
            _must_be_valid({"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]})
        if self.jobset_trouble:
            raise Refused(500, self.jobset_trouble)
        if query.get("dryRun") == "All":
            return body
        body["status"] = {"replicatedJobsStatus": [], "conditions": []}
        self.jobsets[name] = body
        hosts = {
            f"{name}-{job['name']}-{index}-0.{subdomain}.{NAMESPACE}.svc.cluster.local": "127.0.0.1"
            for job in body["spec"]["replicatedJobs"]
            for index in range(job["replicas"])
        }
        for job in body["spec"]["replicatedJobs"]:
            for index in range(job["replicas"]):
                known = {"jobset-name": name, "replicatedjob-name": job["name"], "job-index": str(index)}
                marks = {f"jobset.sigs.k8s.io/{key}": value for key, value in known.items()}
                template = job["template"]["spec"]["template"]
                self._start(
                    template,
                    f"{name}-{job['name']}-{index}-0-{uuid.uuid4().hex[:5]}",
                    labels=marks,
                    annotations={**marks, "jobset.sigs.k8s.io/restart-attempt": "0"},
                    hosts=hosts,
                    done=lambda pod: self._count(body),
                )
        self._count(body)
        return body

    def _count(self, jobset: dict[str, Any]) -> None:
        with self._lock:
            name, counts = jobset["metadata"]["name"], []
            for job in jobset["spec"]["replicatedJobs"]:
                pods = [pod for pod in self._labelled("jobset.sigs.k8s.io/jobset-name", name)
                        if pod.labels["jobset.sigs.k8s.io/replicatedjob-name"] == job["name"]]  # fmt: skip
                phases = [pod.phase for pod in pods]
                active = sum(phase in ("Pending", "Running") for phase in phases)
                counts.append({
                    "name": job["name"], "ready": active, "active": active, "suspended": 0,
                    "succeeded": phases.count("Succeeded"), "failed": phases.count("Failed"),
                })  # fmt: skip
            jobset["status"]["replicatedJobsStatus"] = counts
            if any(count["failed"] for count in counts):
                jobset["status"] |= {"conditions": [{"type": "Failed", "status": "True"}], "terminalState": "Failed"}
                self._kill("jobset.sigs.k8s.io/jobset-name", name)
            elif not any(count["active"] for count in counts):
                done = {"conditions": [{"type": "Completed", "status": "True"}], "terminalState": "Completed"}
                jobset["status"] |= done

    def _get_jobsets(self, *, name: str, **_: Any) -> Any:
        return found(self.jobsets, name, "jobsets.jobset.x-k8s.io")

    def _delete_jobsets(self, *, name: str, **_: Any) -> Any:
        found(self.jobsets, name, "jobsets.jobset.x-k8s.io")
        self._kill("jobset.sigs.k8s.io/jobset-name", name)
        return self.jobsets.pop(name)

    # Pods

    def start_pod(self, template: Any, name: str) -> Pod:
        """A pod that no Job is behind, of a name that begins like that."""
        name = f"{name}-{uuid.uuid4().hex[:5]}"
        with self._lock:
            self._start(template, name, labels={}, done=lambda pod: None)
        return self.pods[name]

    def _start(self, template: Any, name: str, *, labels: Any, done: Any, annotations: Any = None, hosts: Any = None):
        pod = self.pods[name] = self.pod(template, name, NAMESPACE)
        pod.labels |= labels
        pod.annotations |= annotations or {}
        folder = self.folder / "pods" / name
        if self.pod_trouble:
            pod.status = self.pod_trouble
            return
        pod.start(folder, image=self.image, secrets=self.secrets, hosts=hosts or {}, when_done=done)

    def _labelled(self, label: str, value: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.labels.get(label) == value]

    def _kill(self, label: str, value: str) -> None:
        for pod in self._labelled(label, value):
            pod.kill()

    def _list_pods(self, *, query: Mapping[str, str], **_: Any) -> Any:
        wanted = dict(each.split("=", 1) for each in query.get("labelSelector", "").split(",") if each)
        items = [pod for pod in self.pods.values() if wanted.items() <= pod.labels.items()]
        return {"kind": "PodList", "metadata": {}, "items": [pod.to_dict() for pod in items]}

    def _get_pods_log(self, *, name: str, **_: Any) -> Any:
        return found(self.pods, name, "pods").log.read_text()


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Serve the cluster on the loopback interface; at the end no process of its pods is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        for pod in list(cluster.pods.values()):
            pod.kill()
            pod.join()
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(cluster.folder / "pods", ignore_errors=True)


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise 40 ms per answer: the body waits for the headers' receipt

        def _serve(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            url = urllib.parse.urlsplit(self.path)
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Refused(401, "Unauthorized")
                query = dict(urllib.parse.parse_qsl(url.query))
                answer = cluster.answer(self.command, url.path, query, body)
                code = 201 if self.command == "POST" else 200
            except Refused as refused:
                code, answer = refused.code, {"kind": "Status", "status": "Failure", "message": str(refused)}
            is_text = isinstance(answer, str)
            data = answer.encode() if is_text else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _must_be_valid(job: Any) -> None:
    try:
        validate_job(job)
    except kubernetes_validate.ValidationError as error:
        raise Refused(422, f"{'.'.join(map(str, error.path))}: {error.message}") from error
