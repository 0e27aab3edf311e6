"""The process: one server per data directory, its address on disk, and a clean end."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
from fastapi import FastAPI
from pythonjsonlogger.json import JsonFormatter

from overnight.endpoint.api.app import create_app
from overnight.endpoint.api.guard import PatientProtocol
from overnight.endpoint.api.metrics import Metrics
from overnight.endpoint.api.origin import served_hosts
from overnight.endpoint.api.service import Service
from overnight.endpoint.settings import Settings, SettingsError, check, package_version, schedule, secret
from overnight.endpoint.storage.disk import Disk
from overnight.endpoint.storage.privacy import FOLDER_MODE, private_to_owner
from overnight.endpoint.storage.recorder import Recorder
from overnight.endpoint.storage.store import DataError, Store
from overnight.endpoint.upstream.embedded import EmbeddedModel
from overnight.endpoint.upstream.upstream import HttpUpstream, Upstream, UpstreamError
from overnight.endpoint.work.attempts import Attempts
from overnight.endpoint.work.backlog import Backlog
from overnight.endpoint.work.gate import Gate
from overnight.endpoint.work.housekeeping import Housekeeping
from overnight.endpoint.work.pace import FIRST_LIMIT, MOST
from overnight.endpoint.work.runner import Runner, Tools

log: Final = logging.getLogger("overnight.endpoint")

EXIT_FAILED: Final = 1
EXIT_LOCKED: Final = 3
MOST_CONNECTIONS: Final = 1000


class LockedError(RuntimeError):
    """Another server works in the data directory; the message says which."""


def serve(settings: Settings) -> int:
    """Run the server until it is told to stop; return the exit code.

    Returns:
        0 after a clean stop, 1 when it could not start, 3 when another server holds the data directory.
    """
    _set_up_logging(as_json=settings.log_json)
    try:
        check(settings)
        settings.data.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        with private_to_owner(settings.data), _locked(settings.data), _bound(settings) as listener:
            return asyncio.run(_run(settings, listener))
    except LockedError as error:
        log.error("%s", error)  # noqa: TRY400 - what happened is in the message, a traceback would hide it
        return EXIT_LOCKED
    except (SettingsError, UpstreamError, DataError, OSError, sqlite3.Error) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - as above
        return EXIT_FAILED


async def _run(settings: Settings, listener: socket.socket) -> int:
    # Uploads gather in nameless temporary files: on the disk that is watched, and gone with a kill.
    tempfile.tempdir = str(settings.data.absolute())
    upstream = _upstream(settings)
    store = Store(settings.data)
    recorder = Recorder(store.database)
    service, housekeeping = _assemble(settings, upstream, store, recorder)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.runner.start()
        keeping = asyncio.create_task(housekeeping.run())
        yield
        keeping.cancel()
        await service.runner.stop()
        await upstream.close()
        store.close()

    server = _Server(create_app(service, lifespan), settings, listener)
    loading = asyncio.create_task(upstream.start())
    loading.add_done_callback(server.stop_if_failed)
    with _calm_signals():
        await server.serve([listener])
    loading.cancel()
    return EXIT_FAILED if server.failed else 0


def _assemble(settings: Settings, upstream: Upstream, store: Store, recorder: Recorder) -> tuple[Service, Housekeeping]:
    backlog = Backlog(schedule(settings), time.time)
    most = settings.concurrency or upstream.concurrency
    gate = Gate(most or FIRST_LIMIT, most or MOST, rpm=settings.rpm, tpm=settings.tpm, held=backlog.holds)
    metrics = Metrics(store, gate, backlog)
    keep = settings.retention_days * 86_400 or None
    tools = Tools(store, recorder, backlog, gate, Attempts(upstream, metrics.attempt), metrics.line, time.time)
    runner = Runner(tools, upstream.model_ids, settings.grace_seconds, keep)
    disk = Disk(settings.data, settings.min_free_mb << 20)
    service = Service(
        store=store,
        upstream=upstream,
        runner=runner,
        backlog=backlog,
        metrics=metrics,
        disk=disk,
        clock=time.time,
        client_key=secret(settings.client_key_env),
        # A key keeps pages out by itself, and a proxy before this server passes on names of its own.
        hosts=served_hosts(settings.host) if settings.client_key_env is None else None,
        max_open_batches=settings.max_open_batches,
        keep_seconds=keep,
    )
    return service, Housekeeping(store, gate, disk, keep, time.time)


class _Server(uvicorn.Server):
    """uvicorn's server, which also says where it listens and stops with its parent."""

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket) -> None:
        grace = max(1, round(settings.grace_seconds))
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=grace,
            )
        )
        self._settings = settings
        self._url = f"http://{_shown_host(settings.host)}:{listener.getsockname()[1]}/v1"
        self.failed = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            self.failed = True
            return
        announce(self._settings.data, self._url)
        print(f"overnight endpoint: {self._url}", flush=True)  # noqa: T201 - the one line that a parent process reads
        if self._settings.exit_with_stdin:
            threading.Thread(target=self._stop_at_end_of_stdin, daemon=True).start()

    def stop_if_failed(self, loading: asyncio.Task[None]) -> None:
        if not loading.cancelled() and (error := loading.exception()):
            log.error("stopping: %s", error)
            self.failed = self.should_exit = True

    def _stop_at_end_of_stdin(self) -> None:
        # Not sys.stdin: its lock, held by this thread, would abort the interpreter's end.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        self.should_exit = True


def address_file(data: Path) -> Path:
    """Return where a running server says how to reach it."""
    return data / "endpoint.json"


def announce(data: Path, url: str) -> None:
    """Write the server's address, process id and version, all or nothing."""
    part = data / "endpoint.json.part"
    part.write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid(), "version": package_version()}))
    part.replace(address_file(data))


def _upstream(settings: Settings) -> Upstream:
    if settings.upstream is None:
        return EmbeddedModel(settings.line_timeout_seconds)
    return HttpUpstream(settings.upstream, secret(settings.key_env), settings.line_timeout_seconds)


def _announced(data: Path) -> str | None:
    try:
        return str(msgspec.json.decode(address_file(data).read_bytes())["url"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold the data directory; the system lets go of it when the process ends, however it ends."""
    with (data / "endpoint.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            where = f", which serves {url}" if (url := _announced(data)) else ""
            raise LockedError(
                f"{data} is in use by {holder}{where}: use that, or give another --data directory"
            ) from error
        # What a killed server left would send clients to a port that is somebody else's by now.
        address_file(data).unlink(missing_ok=True)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            address_file(data).unlink(missing_ok=True)


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise OSError(f"{settings.host}:{settings.port} cannot be used ({error.strerror}): try --port 0") from error
        yield listener


@contextlib.contextmanager
def _calm_signals() -> Iterator[None]:
    """Let uvicorn act on SIGTERM and SIGINT without its raising them again after a clean stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _shown_host(host: str) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    return f"[{reachable}]" if ":" in reachable else reachable


def _set_up_logging(*, as_json: bool) -> None:
    """Log to stderr; nothing there names a key or a prompt."""
    handler = logging.StreamHandler()
    fields = "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(JsonFormatter(fields) if as_json else logging.Formatter(fields))
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.INFO)
