"""Stands for a process of Python that server.py forks: passes signals on, and ends as that ends.

client.py EXECUTABLE SOCKET [WORDS OF PYTHON]. What is no script and no module (`-c`, other options) starts as ever.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def start_cold(words):
    os.execv(sys.executable, [sys.executable, *words])


def main(executable, address, words):
    what = words[1:] if words[:1] == ["-u"] else words
    if not what or (what[0].startswith("-") and (what[0] != "-m" or len(what) < 2)):
        start_cold(words)
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    child, early = None, []

    def pass_on(number, frame):
        if child is None:
            early.append(number)
        else:
            os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    mask = os.umask(0)
    os.umask(mask)
    folder = os.getcwd()  # noqa: PTH109, pathlib takes longer to import than all this does
    asked = {"words": words, "executable": executable, "folder": folder, "environment": dict(os.environ)}
    content = json.dumps({**asked, "mask": mask, "parent": os.getpid()}).encode()
    socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(content)
    answers = server.makefile()
    answer = answers.readline()
    if answer == "cold\n":
        start_cold(words)
    child = int(answer)
    for number in early:
        os.kill(child, number)
    code = int(answers.readline())
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main(sys.argv[1], sys.argv[2], sys.argv[3:])
