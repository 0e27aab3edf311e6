"""ogx 1.5, a server that nobody here wrote, as a judge: OpenAI's batches and Anthropic's, from one job.

It needs Python 3.12, so it runs beside: `OGX_FOLDER=FOLDER ogx run --insecure tests/ogx.yaml`, with `python -m tests.provider_server
--port 18765` as its model, and OVERNIGHT_OGX=http://127.0.0.1:8321/v1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import ReplyLost
from overnight.providers.inline import InlineProvider
from overnight.providers.provider import Provider
from tests.steps import run_job

ADDRESS = os.environ.get("OVERNIGHT_OGX")
pytestmark = [
    pytest.mark.skipif(ADDRESS is None, reason="OVERNIGHT_OGX names no server"),
    pytest.mark.usefixtures("dialect_key"),
]


@pytest.mark.parametrize("lost", [False, True], ids=["", "the replies to create are lost"])
@pytest.mark.parametrize("profile", ["custom", "anthropic"])
def test_a_strange_server_answers_each_row_in_either_dialect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, lost: bool
) -> None:
    made = 0
    kind = InlineProvider if profile == "anthropic" else Provider
    ordered = kind._ordered

    def lose(self: Any, *args: Any) -> Any:
        nonlocal made
        made += 1
        reply = ordered(self, *args)
        if lost:
            raise ReplyLost("as ordered")
        return reply

    monkeypatch.setattr(kind, "_ordered", lose)
    rows = [{"text": f"text {n} of {tmp_path}"} for n in range(12)] + [{"text": "[400]"}]
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    provider = {"profile": profile, "base_url": ADDRESS, "api_key_env": "OVERNIGHT_KEY_DIALECT"}
    job = {
        "name": "ogx",
        "dataset": {"path": str(path)},
        "task": {"kind": "generate", "prompt": "{{ text }}", "system": "Be brief. " * 120},
        "model": "upstream/some-model",
        "provider": provider,
        "limits": {"poll_seconds": 0.2, "max_requests": 7, "max_attempts": 1},
    }
    _, table = run_job(job, tmp_path / "home")
    assert table["answer"].to_list()[:12] == [f"echo: {row['text']}" for row in rows[:12]]
    assert table["status"].to_list() == ["succeeded"] * 12 + ["failed"]
    assert made == 2
