"""What tests/test_launch.py runs as the step of a flow: `python train_in_group.py FILE [INDEX NUMBER [ADDRESS]]`, of
what steps.launch.pretrain gets, as machine INDEX of so many, of which the first is at ADDRESS, or this machine itself;
FILE's neighbour `result.json` is what it returns, if the first process is there."""

import json
import sys
from pathlib import Path

from steps.console import show_log_lines
from steps.launch import ONE, Machine, pretrain

if __name__ == "__main__":
    file = Path(sys.argv[1])
    machine = ONE
    if len(sys.argv) > 2:
        index, number, *address = sys.argv[2:]
        machine = Machine(int(index), int(number), *(address or [ONE.address]), attempt=f"{file} 0")
    show_log_lines()
    result, page = pretrain(*json.loads(file.read_text()), machine=machine)
    if result:
        file.with_name("result.json").write_text(json.dumps(result))
