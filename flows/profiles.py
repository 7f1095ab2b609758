"""Where a flow's steps run: the Config `profile`, and the decorators that it makes of it.

python flows/pretrain_flow.py --config profile infra/profiles/kubernetes.json run ...
"""

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from metaflow import Config, FlowMutator, metaflow_git

from said import said_by_metaflow
from steps.profile import LOCAL, check_datastore, decorators, parse_profile

HELP = "Where each kind of step runs, and on what: a file of infra/profiles/. Without one every step runs here."


def profile_config() -> Config:
    """The Config `profile`; its default stands in the code, so that it is there wherever the code is."""
    return Config("profile", default_value=LOCAL, parser=_parse, plain=True, help=HELP)


class on_profile(FlowMutator):
    """Each step runs as the profile says of its kind: `kinds` by step; the others are light."""

    def init(self, **kinds: str) -> None:
        self._kinds = kinds

    def pre_mutate(self, flow) -> None:
        """Decorate the steps; what the profile says replaces what the flow's file says."""
        _hide_credentials_of_remote()
        profile = dict(flow.configs)["profile"]
        with said_by_metaflow():
            check_datastore(profile, sys.argv)
        for name, step in flow.steps:
            kind = self._kinds.get(name, "light")
            on_argo = "argo-workflows" in sys.argv
            for decorator, arguments in decorators(profile, kind, step=name, on_argo=on_argo).items():
                step.add_decorator(decorator, deco_kwargs=arguments, duplicates=step.OVERRIDE)


def _parse(text: str) -> dict[str, Any]:
    with said_by_metaflow():
        return parse_profile(text)


def _hide_credentials_of_remote() -> None:
    """Metaflow records the address of git's remote in the code package and with every task; some hold a token."""
    known = metaflow_git.get_repository_info(path=Path(sys.argv[0]).resolve().parent)  # the copy that Metaflow keeps
    if known.get("repo_url"):
        parts = urlsplit(known["repo_url"])
        known["repo_url"] = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
