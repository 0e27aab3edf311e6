"""The endpoint: lines per second before an upstream that answers at once, memory, and the embedded model's rows per second.

    python -m tests.benchmarks.endpoint [--lines 5000] [--large 50000] [--rows 200] [--only instant|embedded]

The instant upstream is a bare asyncio protocol in a process of its own that sends the same 230 bytes to every request: it
reads no JSON and takes a fraction of a core, so what is measured is the endpoint. Times include validation, the result
files and every sync to disk; the upload is not counted. The embedded model is called directly first, by as many workers as
the endpoint uses, with the very requests that the batch then holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openai import OpenAI
from openai.types import Batch

from overnight.endpoint.upstream.embedded import CONCURRENCY, MODEL_ID, EmbeddedModel
from tests.test_endpoint_support import ENDED, client, endpoint, health, request_line, until, upload

ROUNDS = 3
PROMPT = "Is the following review negative or positive? Answer with one word. Review: it works, mostly. "
REVIEWS = ("Broke on the first day.", "Lovely, my children use it daily!", "It does what it says.", "Never again.")


class Measured(NamedTuple):
    """One batch."""

    seconds: float
    cpu_seconds: float
    """Of the server: what the lines cost however busy the machine is."""
    peak_mb: float
    """Highest resident memory of the server, in MiB."""


def main() -> None:
    """Runs everything and prints Markdown tables."""
    options = argparse.ArgumentParser(description=__doc__)
    for name, value in (("lines", 5_000), ("large", 50_000), ("rows", 200)):
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--only", choices=["instant", "embedded"])
    given = options.parse_args()
    if given.only != "embedded":
        instant(given.lines, given.large)
    if given.only != "instant":
        embedded(given.rows)


def instant(lines: int, large: int) -> None:
    """Lines per second and memory, for few lines and for many."""
    print("\n| lines | lines/s | CPU µs per line | peak MiB |\n| --- | --- | --- | --- |")  # noqa: T201
    with instant_upstream() as address:
        for count, rounds in ((lines, ROUNDS), (large, 1)):
            runs = [one_batch(count, "--upstream", address) for _ in range(rounds)]
            seconds = statistics.median(run.seconds for run in runs)
            cpu = statistics.median(run.cpu_seconds for run in runs) / count * 1e6
            peak = max(run.peak_mb for run in runs)
            print(f"| {count:,} | {count / seconds:,.0f} | {cpu:.0f} | {peak:.0f} |", flush=True)  # noqa: T201


def one_batch(lines: int, *options: str) -> Measured:
    """Run a batch on a new server."""
    rows = [request_line(f"row-{number}", PROMPT * 3 + str(number)) for number in range(lines)]
    with (
        tempfile.TemporaryDirectory() as folder,
        endpoint(Path(folder), *options) as running,
        client(running.url) as sdk,
    ):
        file_id = upload(sdk, rows)
        began, used = time.perf_counter(), cpu_seconds(running.process.pid)
        batch = sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        batch = wait(sdk, batch)
        seconds = time.perf_counter() - began
        if batch.request_counts is None or batch.request_counts.completed != lines:
            raise AssertionError(batch)
        return Measured(seconds, cpu_seconds(running.process.pid) - used, peak_mb(running.process.pid))


def wait(sdk: OpenAI, batch: Batch) -> Batch:
    """Poll rarely: on two cores a client in a hurry would take some of the server's."""
    while batch.status not in ENDED:
        time.sleep(0.1)
        batch = sdk.batches.retrieve(batch.id)
    return batch


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, its own and the system's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """Highest resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def embedded(rows: int) -> None:
    """The embedded model, called directly and through batches, in turns."""
    requests = [request_line(f"row-{number}", f"{PROMPT} {REVIEWS[number % 4]} {number}", MODEL_ID, max_tokens=16, temperature=0) for number in range(rows)]  # fmt: skip
    taken: dict[str, list[float]] = {"directly": [], "through the Batch API": []}
    for _ in range(ROUNDS):
        taken["directly"].append(rows / asyncio.run(called_directly(requests)))
        taken["through the Batch API"].append(rows / called_in_a_batch(requests))
    direct = statistics.median(taken["directly"])
    print("\n| embedded model | rows/s | ratio |\n| --- | --- | --- |")  # noqa: T201
    for way, rates in taken.items():
        rate = statistics.median(rates)
        print(f"| {way} | {rate:.1f} | {rate / direct:.2f} |", flush=True)  # noqa: T201


async def called_directly(requests: list[str]) -> float:
    """Seconds for all requests, with as many in flight as the endpoint has."""
    model = EmbeddedModel()
    await model.start()
    left = iter([json.dumps(json.loads(request)["body"]).encode() for request in requests])

    async def worker() -> None:
        for body in left:
            reply = await model.send("/v1/chat/completions", body)
            if reply.answer.status_code != 200:
                raise AssertionError(reply)

    await model.send("/v1/chat/completions", json.dumps(json.loads(requests[0])["body"]).encode())
    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - began
    await model.close()
    return seconds


def called_in_a_batch(requests: list[str]) -> float:
    """Seconds for all requests as a batch, from its creation to its end."""
    with tempfile.TemporaryDirectory() as folder, endpoint(Path(folder)) as running, client(running.url) as sdk:
        until(lambda: health(running.url), lambda found: bool(found["ready"]))
        message: Any = json.loads(requests[0])["body"]["messages"]
        sdk.chat.completions.create(model=MODEL_ID, messages=message, max_tokens=16)
        file_id = upload(sdk, requests)
        began = time.perf_counter()
        batch = sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        batch = wait(sdk, batch)
        if batch.request_counts is None or batch.request_counts.completed != len(requests):
            raise AssertionError(batch)
        return time.perf_counter() - began


_BODY = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "small",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "positive"}}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35},
}).encode()  # fmt: skip
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class _Instant(asyncio.Protocol):
    """Answers every request with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            self.transport.write(_ANSWER)  # type: ignore[attr-defined] # it is a socket's


async def serve_instantly() -> None:
    """Serve until the end of stdin; print the address first."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Instant, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201 - read by the parent
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def instant_upstream() -> Iterator[str]:
    """The instant upstream in a process of its own."""
    code = "import asyncio; from tests.benchmarks.endpoint import serve_instantly; asyncio.run(serve_instantly())"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError
        yield process.stdout.readline().strip()
        process.stdin.close()


if __name__ == "__main__":
    main()
