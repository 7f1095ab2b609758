"""Whole flows with secrets in their environment leave none of them anywhere."""

import pytest
from conftest import Finished
from planted import leaks, leaks_below

pytestmark = pytest.mark.slow


def test_no_secret_of_the_environment_is_in_artifacts_cards_logs_tags_or_models(finished: Finished) -> None:
    folder = finished.workspace.folder
    assert (folder / "mlflow.db").is_file() and any(folder.glob(".metaflow/PretrainFlow/*/end"))
    assert leaks("what was printed", finished.output.encode()) == []
    assert leaks_below(folder) == {}
