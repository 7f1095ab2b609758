"""Machines with addresses of their own: namespaces of this machine's network, joined by a cable that can be cut."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple


class Host(NamedTuple):
    address: str
    command: tuple[str, ...]
    """What runs a command there, before that command."""
    cable: str


class Network(NamedTuple):
    hosts: tuple[Host, Host]

    def cut(self) -> None:
        """What either sends to the other is lost, and nobody is told: each has a wrong hardware address for it."""
        for here, there in (self.hosts, reversed(self.hosts)):
            _ip("-n", here.command[-1], "neigh", "replace", there.address, "lladdr", "02:00:00:00:00:99",
                "dev", here.cable, "nud", "permanent")  # fmt: skip

    def mend(self) -> None:
        for here, there in (self.hosts, reversed(self.hosts)):
            _ip("-n", here.command[-1], "neigh", "del", there.address, "dev", here.cable)


def can_have_hosts() -> bool:
    """Namespaces want the rights of root, and iproute2."""
    name = f"can{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", name]).returncode != 0:
        return False
    _ip("netns", "del", name)
    return True


@contextlib.contextmanager
def two_hosts() -> Iterator[Network]:
    names = [f"host-{os.getpid()}-{which}" for which in "ab"]
    cables = [f"ve{os.getpid()}{which}" for which in "ab"]
    hosts = [
        Host(f"10.77.0.{index}", ("ip", "netns", "exec", name), cable)
        for index, (name, cable) in enumerate(zip(names, cables, strict=True), start=1)
    ]
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for name, host in zip(names, hosts, strict=True):
            _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            for link in ("lo", host.cable):
                _ip("-n", name, "link", "set", link, "up")
        yield Network((hosts[0], hosts[1]))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)
