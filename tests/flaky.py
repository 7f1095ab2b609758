"""A TCP proxy that spoils connections: what an S3 that is overloaded, or a network that is bad, looks like."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_ANSWER = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
)


class Flaky:
    """What befalls connections to `url`, in turn: "pass", "503", or "reset" once the request has begun."""

    def __init__(self, endpoint: str) -> None:
        self.fates: list[str] = ["pass"]
        self.num_spoiled = 0
        self._target = urlsplit(endpoint)
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                fate = self.fates[self._count % len(self.fates)]
                self._count += 1
                threading.Thread(target=self._serve, args=(client, fate), daemon=True).start()

    def _serve(self, client: socket.socket, fate: str) -> None:
        with client, contextlib.suppress(OSError):
            if fate == "pass":
                self._pass(client)
                return
            self.num_spoiled += 1
            client.recv(1024)
            if fate == "503":
                client.sendall(_ANSWER % (len(_SLOW_DOWN), _SLOW_DOWN))
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):  # unread data would reset the connection before the answer is read
                    pass
            else:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _pass(self, client: socket.socket) -> None:
        assert self._target.hostname and self._target.port
        with socket.create_connection((self._target.hostname, self._target.port)) as server:
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def flaky(endpoint: str) -> Iterator[Flaky]:
    proxy = Flaky(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
