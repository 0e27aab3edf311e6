"""The endpoint's document says what is so: its options and metrics are all there, and its code runs."""

import re
from dataclasses import fields
from pathlib import Path

import httpx2
import pytest

from overnight.endpoint.settings import Settings, check
from tests.conftest import ROOT
from tests.test_endpoint_support import endpoint

TEXT = (ROOT / "docs/endpoint.md").read_text()


def test_every_option_is_in_the_table_and_no_other() -> None:
    table = TEXT.split("## Options")[1].split("## Cheap hours")[0]
    named = re.findall(r"`--([a-z-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    assert sorted(named) == sorted(option.name.replace("_", "-") for option in fields(Settings))


def test_its_hours_are_read() -> None:
    hours = re.findall(r"`([^`]+ UTC (?:off-)?peak)`", TEXT)
    assert len(hours) == 3
    for text in hours:
        check(Settings(upstream="https://api.deepseek.com", off_peak=text))


def test_its_code_runs_and_its_metrics_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with endpoint(tmp_path) as running:
        exec(compile(code.replace("http://127.0.0.1:8642/v1", running.url), "endpoint.md", "exec"), {})
        told = httpx2.get(running.url.removesuffix("/v1") + "/metrics").text
    assert '"custom_id":"row-1"' in capsys.readouterr().out
    named = re.findall(r"`(overnight_endpoint_\w+)", TEXT)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", told, re.MULTILINE))
    assert sorted(named) == sorted(types)
