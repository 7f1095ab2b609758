"""What tests/test_launch.py runs as the step of a flow: `python train_in_group.py FILE`, of what steps.launch.pretrain
gets; FILE's neighbour `result.json` is what it returns."""

import json
import sys
from pathlib import Path

from steps.console import console
from steps.launch import pretrain

if __name__ == "__main__":
    file = Path(sys.argv[1])
    with console():
        result, page = pretrain(*json.loads(file.read_text()))
    file.with_name("result.json").write_text(json.dumps(result))
