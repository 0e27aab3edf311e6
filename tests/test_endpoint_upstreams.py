"""Any upstream: a llama.cpp server over HTTP, and overnight's own steps against an endpoint that is killed."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from overnight.endpoint.upstream.embedded import model_path
from tests.conftest import ROOT
from tests.test_endpoint_support import (
    Endpoint,
    HeldUpstream,
    client,
    create_batch,
    endpoint,
    held_upstream,
    read_lines,
    request_line,
    until,
    wait_for_end,
)

LLAMA = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = {"llama"}
params.api_keys = ["llama-key"]
params.n_parallel, params.n_ctx, params.cache_ram_mib = 2, 2048, 0
params.warmup, params.ui, params.verbosity = False, False, -1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server() -> Iterator[str]:
    """llama.cpp's own HTTP server with a key, in a process of its own."""
    command = [sys.executable, "-c", LLAMA, str(model_path())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(line for line in process.stdout if line.startswith("http"))
            yield address.strip()
        finally:
            process.kill()


def test_a_llama_cpp_server_answers_batches_through_the_endpoint(tmp_path: Path) -> None:
    with llama_server() as address, ExitStack() as stack:
        options = ("--upstream", address, "--key-env", "LLAMA_KEY")
        running = stack.enter_context(endpoint(tmp_path, *options, LLAMA_KEY="llama-key"))
        sdk = stack.enter_context(client(running.url))
        assert [model.id for model in sdk.models.list()] == ["llama"]
        lines = [request_line(f"row-{number}", f"Say {number}.", "llama", max_tokens=4) for number in range(6)]
        lines.append(request_line("wrong", "hi", "llama", max_tokens="many"))
        batch = wait_for_end(sdk, create_batch(sdk, lines), 120)
        answers = read_lines(sdk, batch.output_file_id)
        assert {line["custom_id"] for line in answers} == {f"row-{number}" for number in range(6)}
        assert batch.usage is not None
        assert batch.usage.output_tokens == sum(
            line["response"]["body"]["usage"]["completion_tokens"] for line in answers
        )
        (failed,) = read_lines(sdk, batch.error_file_id)
        assert (failed["custom_id"], failed["error"], failed["response"]["status_code"] >= 400) == ("wrong", None, True)


TEXTS = [f"text {number}" for number in range(14)] + ["text 0"]
CONCURRENCY = 2
RUN = """
import json, sys, pathlib
from tests.crash_driver import run_once
run_once(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def job_file(folder: Path, port: int) -> Path:
    rows = folder / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    job: dict[str, Any] = {
        "name": "texts",
        "dataset": {"path": str(rows)},
        "task": {"kind": "generate", "prompt": "{{ text }}"},
        "model": "small",
        "provider": {"profile": "custom", "base_url": f"http://127.0.0.1:{port}/v1"},
        "limits": {"poll_seconds": 0.05, "max_requests": 5, "lost_reply_seconds": 0.5},
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


class Runs:
    """An endpoint and a run against it, each started again whenever it is gone."""

    def __init__(self, folder: Path, upstream: HeldUpstream) -> None:
        self.folder, self.port = folder, free_port()
        self.job, self.options = (
            job_file(folder, self.port),
            ("--upstream", upstream.url, "--concurrency", str(CONCURRENCY)),
        )
        self.stack = ExitStack()
        self.restarts = 0
        self.start("both")

    def start_endpoint(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)
        options = ("--port", str(self.port), *self.options)
        self.endpoint: Endpoint = self.stack.enter_context(endpoint(self.folder / "data", *options))

    def start_run(self) -> None:
        command = [sys.executable, "-c", RUN, str(self.job), str(self.folder / "home")]
        log = self.stack.enter_context((self.folder / "run.txt").open("ab"))
        self.run = self.stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
        self.restarts += 1

    def kill(self, what: str) -> None:
        if what != "run":
            self.endpoint.kill()
        if what != "endpoint":
            self.kill_run()

    def start(self, what: str) -> None:
        if what != "run":
            self.start_endpoint()
        if what != "endpoint":
            self.start_run()

    def kill_run(self) -> None:
        self.run.kill()
        self.run.wait(30)

    def ended(self) -> bool:
        """Whether the run is done; one that gave up on a silent endpoint is started again, as its user would."""
        code = self.run.poll()
        if code:
            assert self.restarts < 20, (self.folder / "run.txt").read_text()[-3000:]
            self.start_run()
        return code == 0


@pytest.mark.parametrize("what", ["endpoint", "run", "both"])
def test_a_job_ends_with_every_row_answered_whatever_is_killed(tmp_path: Path, what: str) -> None:
    with held_upstream(free=2) as upstream, ExitStack() as stack:
        runs = Runs(tmp_path, upstream)
        stack.enter_context(runs.stack)
        stack.callback(runs.kill_run)
        kills = 0
        for _ in range(2):
            until(lambda: runs.ended() or upstream.free < 0, bool, 120)
            runs.kill(what)
            kills += 1
            upstream.free = 3
            upstream.released = CONCURRENCY if what == "run" else 0
            runs.start(what)
        until(lambda: runs.ended() or upstream.free < 0, bool, 120)
        upstream.opened.set()
        until(runs.ended, bool, 120)
    joined = pd.read_parquet(tmp_path / "home/texts/joined.parquet")
    assert joined["status"].to_list() == ["succeeded"] * len(TEXTS)
    calls = sum(upstream.calls.values())
    assert set(upstream.calls) == set(TEXTS)
    assert calls - len(set(TEXTS)) <= (kills * CONCURRENCY if what != "run" else 0)
