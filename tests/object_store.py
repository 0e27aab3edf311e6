"""An S3 server on loopback, moto's, that fails on order: busy, cut short, or the end of who puts.

    python -m tests.object_store

Prints its address, and ends with its stdin. `POST /_order` takes a list of faults, each for the calls of one method
whose path holds a text: `{"method": "PUT", "path": "/results/", "skip": 1, "times": 2, "do": "503"}`. `do` is `503`
(SlowDown), `503 after` (the same, once the store has done it), `cut` (half of the body, then the connection ends), `kill before` and `kill after` (SIGKILL to `pid`,
before or after the store has done what was asked). `GET /_calls` tells the calls so far, as `METHOD path`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

from tests.server import ServerProcess

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
Start = Callable[..., Any]


class Faults:
    """Moto's application with faults before and after it."""

    def __init__(self, application: Callable[[dict[str, Any], Start], Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self.orders: list[dict[str, Any]] = []
        self.calls: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/_order":
            self.orders = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            return self._say(start, b"[]")
        if path == "/_calls":
            return self._say(start, json.dumps(self.calls).encode())
        do, pid = self._fault(method, path)
        if do == "503":
            return self._busy(start)
        if do == "kill before":
            os.kill(pid, signal.SIGKILL)
        told: list[Any] = []
        body = b"".join(self._application(environ, lambda *about, **_: told.extend(about)))
        if do == "503 after":
            return self._busy(start)
        if do == "kill after":
            os.kill(pid, signal.SIGKILL)
        start(*told[:2])
        return [body[: len(body) // 2]] if do == "cut" else [body]

    def _fault(self, method: str, path: str) -> tuple[str, int]:
        with self._lock:
            self.calls.append(f"{method} {path}")
            for order in self.orders:
                if order["method"] == method and order.get("path", "") in path:
                    if order.get("skip", 0):
                        order["skip"] -= 1
                    elif order.get("times", 1):
                        order["times"] = order.get("times", 1) - 1
                        return order["do"], order.get("pid", 0)
        return "", 0

    def _busy(self, start: Start) -> list[bytes]:
        start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_BUSY)))])
        return [_BUSY]

    def _say(self, start: Start, body: bytes) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def order_faults(*faults: dict[str, Any], address: str | None = None) -> None:
    """Orders faults of the server that the environment leads to, in place of those before."""
    wanted = urllib.request.Request(f"{address or os.environ['AWS_ENDPOINT_URL']}/_order", json.dumps(faults).encode())
    urllib.request.urlopen(wanted).close()


class StoreProcess(ServerProcess):
    """The server in a process of its own, and the environment that leads to it."""

    def __init__(self) -> None:
        super().__init__("-m", "tests.object_store")
        self.environment = {
            "AWS_ENDPOINT_URL": self.address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a secret of tests",
        }  # fmt: skip

    def bucket(self) -> str:
        """A new bucket."""
        name = f"runs-{uuid4().hex[:12]}"
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT", data=b"")).close()
        return name

    def order(self, *faults: dict[str, Any]) -> None:
        """Orders faults in place of those before."""
        order_faults(*faults, address=self.address)

    def calls(self) -> list[str]:
        """What was called so far."""
        with urllib.request.urlopen(f"{self.address}/_calls") as reply:
            calls: list[str] = json.load(reply)
            return calls


def running_store() -> Iterator[StoreProcess]:
    """A server for as long as a fixture lives."""
    store = StoreProcess()
    yield store
    store.stop()


def main() -> None:
    """Serves until stdin ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415 - seconds, for this process
    from werkzeug.serving import make_server  # noqa: PLC0415

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, Faults(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - who started it reads it
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
