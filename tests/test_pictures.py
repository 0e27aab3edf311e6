"""The sample job with pictures, through the endpoint to an upstream that looks at what it got."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from overnight.job.jobfile import load_job
from tests.conftest import ROOT
from tests.steps import run_job
from tests.test_endpoint_support import endpoint


def shape_in(png: bytes) -> str:
    """Which shape an image of 32 × 32 pixels shows, by its pixels."""
    start = png.index(b"IDAT") + 4
    size = int.from_bytes(png[start - 8 : start - 4], "big")
    rows = zlib.decompress(png[start : start + size])
    white = bytes((250, 250, 245))

    def inked(x: int, y: int) -> bool:
        at = y * (1 + 32 * 3) + 1 + x * 3
        return rows[at : at + 3] != white

    if inked(6, 6):
        return "square"
    return "circle" if inked(6, 11) else "triangle"


class Eyes(http.server.BaseHTTPRequestHandler):
    """A real-time API with a model that sees shapes."""

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 - as the library names it
        del format

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "eyes", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, picture = body["messages"][-1]["content"]
        kind, _, data = picture["image_url"]["url"].partition(";base64,")
        shape = shape_in(base64.b64decode(data)) if (text["type"], kind) == ("text", "data:image/png") else "nothing"
        message = {"role": "assistant", "content": json.dumps({"shape": shape})}
        usage = {"prompt_tokens": 300, "completion_tokens": 5, "total_tokens": 305}
        self._reply(
            {"model": "eyes", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        )

    def _reply(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def eyes() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Eyes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_the_sample_pictures_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = pd.read_csv(ROOT / "data/samples/pictures.csv")
    gone = {"picture_id": 7, "picture": str(tmp_path / "gone.png"), "expected": "circle"}
    table = pd.concat([table, pd.DataFrame([gone])], ignore_index=True)
    table.to_csv(tmp_path / "pictures.csv", index=False)
    (tmp_path / "endpoint").mkdir()
    with eyes() as upstream, endpoint(tmp_path / "endpoint", "--upstream", upstream) as served:
        job = load_job("data/jobs/pictures.yaml", [
            f"dataset.path={tmp_path / 'pictures.csv'}", "model=eyes", "limits.poll_seconds=0.05",
            f"provider={{profile: custom, base_url: {served.url}, api_key_env: OVERNIGHT_KEY_TESTS}}",
        ])  # fmt: skip
        _, joined = run_job(job, tmp_path / "home")
    assert joined["answer"].to_list()[:6] == table["expected"].to_list()[:6]
    assert joined["status"].to_list() == ["succeeded"] * 6 + ["failed"]
    assert joined["error_code"].to_list()[6] == "bad_image"
    assert "gone.png: No such file" in joined["error_message"].to_list()[6]
