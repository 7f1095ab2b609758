"""Do S3 and the MLflow server answer? Asked from here, and, as the text of a pod's program, from inside a cluster,
where the image is looked at, too.

It imports nothing of the project: a pod has only what its image holds. What it reads is in the environment: PROBE_S3
(s3://BUCKET/PREFIX), PROBE_MLFLOW (a tracking URI), either may be empty; an endpoint of S3, and whose credentials.
"""

import json
import os
import urllib.error
import urllib.request
import uuid
from typing import Any

_SECONDS = 10


def ask_s3(address: str) -> tuple[str, str, str]:
    """Write, list, read and delete an object below an s3:// prefix: "ok" or "failed", what was found, the remedy."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
    endpoint = os.environ.get("METAFLOW_S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    key = "/".join(filter(None, (prefix, f".preflight-{uuid.uuid4().hex}")))
    doing = "connecting"
    try:
        limits = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 2})
        client = boto3.Session().client("s3", endpoint_url=endpoint, config=limits)
        doing = "s3:PutObject"
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
        doing = "s3:ListBucket"
        client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        doing = "s3:GetObject"
        same = client.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
        doing = "s3:DeleteObject"
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        return "failed", f"{address}: {doing}: {error}", _s3_remedy(error, doing)
    if not same:
        return (
            "failed",
            f"{address}: another object came back than was written",
            "look at what stands before the bucket",
        )
    return "ok", f"{address} can be written, listed, read and deleted from{f' by {endpoint}' if endpoint else ''}", ""


def ask_mlflow(uri: str) -> tuple[str, str, str]:
    """List one experiment of a tracking server, with the credentials in the environment; likewise."""
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        import base64

        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return "failed", f"{uri} answers {error.code} {error.reason}", _mlflow_remedy(error.code)
    except ValueError:
        return "failed", f"{uri} answers, but not as MLflow does", "give the server's own address, without a path"
    except OSError as error:
        reason = getattr(error, "reason", error)
        if ".svc" in uri and not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return "note", f"{uri} is a name inside the cluster ({reason})", (
                "ask from inside: --from_inside; or kubectl port-forward -n mlflow service/mlflow 5000"
            )  # fmt: skip
        return "failed", f"{uri} does not answer: {reason}", (
            "is the server running (kubectl get pods -n mlflow), is the address right, is a NetworkPolicy in the way?"
        )  # fmt: skip
    return "ok", f"{uri} answers", ""


def ask_image() -> tuple[str, str, str]:
    """Does this image tell a step that its pod is taken away? Likewise."""
    if "tell_step" in os.environ.get("BASH_ENV", ""):
        return "ok", "a step is told when its pod is taken away, and leaves a checkpoint", ""
    return "note", "a step is not told when its pod is taken away: what it did since its last checkpoint is lost", (
        "take tell_step.sh and killall5 of infra/container into the image, as its Dockerfile does"
    )  # fmt: skip


def _s3_remedy(error: Any, doing: str) -> str:
    response = getattr(error, "response", None) or {}  # None of a connection that broke
    code = response.get("Error", {}).get("Code", type(error).__name__)
    if code in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return (
            "log in (aws sso login, AWS_PROFILE); inside a cluster: a role on the service account, or a Secret with "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that the profile names"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return "the credentials are not valid or no longer: renew them, or the Secret that holds them"
    if code == "NoSuchBucket":
        return "make the bucket, or mend METAFLOW_DATASTORE_SYSROOT_S3 (fast-electra metaflow-config)"
    if code in ("AccessDenied", "AllAccessDisabled", "403"):
        return (
            f"whoever asked lacks {doing} there: give it to the role (infra/terraform/identities.tf), or take another"
        )
    return (
        "is the address right (METAFLOW_S3_ENDPOINT_URL, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION)? From inside: does the "
        "NetworkPolicy let its port through (infra/kubernetes/base/jobs/network.yaml)?"
    )


def _mlflow_remedy(status: int) -> str:
    if status in (401, 403):
        return (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here and in the "
            "Secret; and let the server's --allowed-hosts know this name"
        )
    return "look at the server's log: kubectl logs -n mlflow deployment/mlflow"


def main() -> None:
    """Print what was found as one line of JSON: {"image": […], "s3": […], "mlflow": […]}, of what was to be asked."""
    found = {"image": ask_image()}
    if os.environ.get("PROBE_S3"):
        found["s3"] = ask_s3(os.environ["PROBE_S3"])
    if os.environ.get("PROBE_MLFLOW"):
        found["mlflow"] = ask_mlflow(os.environ["PROBE_MLFLOW"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
