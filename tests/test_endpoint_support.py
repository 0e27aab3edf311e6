"""What the endpoint's tests share: the server as a process, and a real upstream that can be held."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from openai import OpenAI
from openai.types import Batch

Value = TypeVar("Value")
Planned = tuple[int, dict[str, str], bytes]
"""A status, headers and a body that an upstream is told to answer with."""

ENDED = {"completed", "failed", "expired", "cancelled"}


def until(read: Callable[[], Value], holds: Callable[[Value], bool], seconds: float = 30) -> Value:
    """Read until the value is as wanted; the deadline only ends a test that fails."""
    deadline = time.monotonic() + seconds
    while not holds(value := read()):
        assert time.monotonic() < deadline, f"still {value}"
        time.sleep(0.02)
    return value


@dataclass
class Endpoint:
    """A running server process."""

    process: subprocess.Popen[str]
    data: Path
    url: str

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def endpoint(data: Path, *options: str, umask: int = -1, **environment: str) -> Iterator[Endpoint]:
    """Start a server on a free port, with this process' umask unless told; it ends with the block, if not before."""
    pipe, surroundings = subprocess.PIPE, {**os.environ, **environment}
    with (data / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(data, *options), stdin=pipe, stdout=pipe, stderr=log, text=True, env=surroundings, umask=umask
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            line = process.stdout.readline()
            assert line, "the server ended before it listened"
            yield Endpoint(process, data, line.split()[-1])
        finally:
            process.kill()


def command(data: Path, *options: str) -> list[str]:
    port = () if "--port" in options else ("--port", "0")
    return [sys.executable, "-m", "overnight.endpoint", *port, "--data", str(data), *options]


def health(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(url.removesuffix("/v1") + "/healthz").json()
    return found


@contextmanager
def client(url: str, key: str = "any") -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key=key, max_retries=0) as openai:
        yield openai


def request_line(custom_id: str, content: str, model: str = "small", **body: Any) -> str:
    messages = [{"role": "user", "content": content}]
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": {"model": model, "messages": messages, **body}})


def upload(openai: OpenAI, lines: list[str], **options: Any) -> str:
    content = "".join(f"{line}\n" for line in lines).encode()
    return openai.files.create(file=("requests.jsonl", content), purpose="batch", **options).id


def create_batch(openai: OpenAI, lines: list[str], window: Any = "24h", **options: Any) -> Batch:
    options = {"endpoint": "/v1/chat/completions", **options}
    return openai.batches.create(input_file_id=upload(openai, lines), completion_window=window, **options)


def wait_for_end(openai: OpenAI, batch: Batch, seconds: float = 30) -> Batch:
    return until(lambda: openai.batches.retrieve(batch.id), lambda found: found.status in ENDED, seconds)


def wait_for_completed(openai: OpenAI, batch: Batch, count: int) -> Batch:
    def completed(found: Batch) -> bool:
        return found.request_counts is not None and found.request_counts.completed == count

    return until(lambda: openai.batches.retrieve(batch.id), completed)


def read_lines(openai: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Read a result file; none has no lines."""
    if file_id is None:
        return []
    content = openai.files.content(file_id).content
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def prompt_of(request: dict[str, Any]) -> str:
    """The text that a request of any endpoint is about."""
    match request:
        case {"messages": [*_, {"content": content}]}:
            return str(content)
    return str(request.get("input") or request.get("prompt"))


@dataclass
class HeldUpstream:
    """A real-time API that counts calls by prompt, answers `free` of them and holds the others."""

    free: int = 1_000_000
    answers: dict[str, list[Planned]] = field(default_factory=dict)
    """What to answer to a prompt, call by call, before the usual answer."""
    calls: Counter[str] = field(default_factory=Counter)
    paths: dict[str, str] = field(default_factory=dict)
    """Where each prompt was last sent."""
    answered: Counter[str] = field(default_factory=Counter)
    """Calls that were answered in the usual way: what a real upstream would be paid for."""
    failing: float = 0.0
    """Share of calls that fail by chance, the same ones in every run."""
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    keys: set[str | None] = field(default_factory=set)
    opened: threading.Event = field(default_factory=threading.Event)
    released: int = 0
    """Held calls that may be answered all the same."""
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, prompt: str, key: str | None) -> Planned:
        with self._lock:
            self.keys.add(key)
            self.calls[prompt] += 1
            planned = self.answers.get(prompt)
            if planned:
                return planned.pop(0)
            if self.chance.random() < self.failing:
                return 503, {}, b"busy"
            self.free -= 1
            held = self.free < 0
        while held and not self.opened.wait(0.02):
            with self._lock:
                if self.released:
                    self.released -= 1
                    held = False
        with self._lock:
            self.answered[prompt] += 1
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"echo {prompt}"}}
        return (
            200,
            {},
            json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}, indent=1).encode(),
        )


@contextmanager
def held_upstream(
    free: int = 1_000_000, answers: dict[str, list[Planned]] | None = None, failing: float = 0.0
) -> Iterator[HeldUpstream]:
    """Serve a HeldUpstream on a free loopback port."""
    upstream = HeldUpstream(free, answers or {}, failing=failing)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers.get("authorization")
            upstream.paths[prompt_of(request)] = self.path
            status, headers, body = upstream.answer(prompt_of(request), key)
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                pass  # a killed endpoint does not wait for its answers

        def do_GET(self) -> None:
            body = b'{"object":"list","data":[{"id":"small","object":"model","created":0,"owned_by":"test"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the parent
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        upstream.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield upstream
        finally:
            upstream.opened.set()
            server.shutdown()
            thread.join()
