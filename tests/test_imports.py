"""What a process does not wait for: torch takes seconds to import, transformers' models as long again."""

import subprocess
import sys

import pytest

CODE = """
import sys
from fast_electra_core.errors import ConfigError
{}
print(*(name for name in ("torch", "transformers", "mlflow") if name in sys.modules))
"""
REFUSED = """
from steps import planning
try:
    planning.{}({{"preset": "tinny"}}, flow="", run_id="")
except ConfigError as error:
    assert "Did you mean 'tiny'" in str(error)
"""


@pytest.mark.parametrize(
    ("doing", "imported"),
    [
        (REFUSED.format("begin_auxiliary"), ""),
        (REFUSED.format("begin_pretrain"), ""),
        ("import steps.launch, steps.tokenization", ""),
        ("import steps.compare, steps.comparison_page", ""),
        ("import steps.frozen, torch.distributed.launcher.api", "torch"),
    ],
    ids=[
        "refusing an auxiliary's parameter",
        "refusing a parameter",
        "launching, tokenizing",
        "gathering a comparison",
        "choosing the auxiliary",
    ],
)
def test_what_is_not_needed_is_not_imported(doing: str, imported: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(doing)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (imported, 0), done.stderr
