"""A TCP proxy in front of a service, to make it refuse, hang or answer 503 whenever a drill wants."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Mode = Literal["pass", "refuse", "hang", "busy"]
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PIECE = 1 << 16


class Proxy:
    """Listens on a loopback port of its own and passes everything on, while told to.

    `refuse` resets connections, `hang` takes them and stays silent, `busy` answers HTTP 503.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def set(self, mode: Mode) -> None:
        """Changes the mode; connections of the old one break off."""
        with self._lock:
            self._mode = mode
            open_now, self._open = self._open, set()
        for connection in open_now:
            _reset(connection)

    @contextmanager
    def fails(self, mode: Mode) -> Iterator[None]:
        """Another mode for the length of a block."""
        self.set(mode)
        try:
            yield
        finally:
            self.set("pass")

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()
        self.set("refuse")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            mode = self._mode
            if mode != "refuse":
                self._open.add(client)
        if mode == "refuse":
            _reset(client)
        elif mode == "busy":
            with contextlib.suppress(OSError):
                client.recv(PIECE)
                client.sendall(BUSY)
                client.close()
        elif mode == "pass":
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port), 5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=_pump, args=(server, client), daemon=True).start()
        _pump(client, server)
        with self._lock:
            self._open -= {client, server}


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copies until one side ends."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """Closes with RST instead of a polite end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
