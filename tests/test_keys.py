"""A key goes only where its owner meant it to; what providers and rows say is data wherever it is shown."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import JobError, ProviderUnavailable
from overnight.job.profiles import Profile
from overnight.providers.connect import connect
from overnight.providers.download import refuse_private
from overnight.providers.keys import ALLOWED, check_block_address, is_private
from overnight.providers.provider import Provider
from overnight.reports.diagnosis import Group, diagnosis_text
from overnight.reports.report import pie
from overnight.rows.samples import samples_text
from overnight.text import code, inline, printable, table
from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.steps import build, run_job

ELSEWHERE = "https://elsewhere.example/v1"
CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"


@pytest.mark.parametrize(
    ("profile", "fields", "allowed", "refused"),
    [
        ("openai", {}, "", None),
        ("openai", {"base_url": "http://127.0.0.1:9/v1"}, "", None),
        (
            "openai",
            {"base_url": ELSEWHERE},
            "",
            "OPENAI_API_KEY is the key for https://api.openai.com/v1, and is not sent",
        ),
        ("custom", {"base_url": ELSEWHERE, "api_key_env": "OPENAI_API_KEY"}, "", "is not sent to https://elsewhere"),
        ("custom", {"base_url": ELSEWHERE, "api_key_env": "OPENAI_API_KEY"}, "A, OPENAI_API_KEY", None),
        ("custom", {"base_url": ELSEWHERE, "api_key_env": "AWS_SECRET_ACCESS_KEY"}, "", "is no variable for keys"),
        ("custom", {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "HOME"}, "", "is no variable for keys"),
        ("custom", {"base_url": ELSEWHERE, "api_key_env": "OVERNIGHT_KEY_ELSEWHERE"}, "", None),
        ("custom", {"base_url": ELSEWHERE}, "", None),
        ("azure", {"base_url": "https://mine.openai.azure.com/openai/v1/"}, "", None),
    ],
)
def test_a_key_is_read_and_sent_only_where_it_is_meant_to_be(
    profile: str,
    fields: dict[str, Any],
    allowed: str,
    refused: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    named = Profile.named(profile).overridden(**fields)
    monkeypatch.setenv(ALLOWED, allowed)
    monkeypatch.setenv(named.api_key_env or "", "the key")
    if refused is None:
        connect(named, tmp_path).close()
    else:
        with pytest.raises(JobError, match=refused):
            connect(named, tmp_path)


@pytest.mark.parametrize(
    ("given", "block", "refused"),
    [
        (None, None, False),
        (None, "https://api.openai.com/v1", False),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1", False),
        (ELSEWHERE, "https://api.openai.com/v1", True),
        (ELSEWHERE, None, True),
        ("http://127.0.0.1:8642/v1", None, False),
    ],
)
def test_a_job_has_no_blocks_key_sent_elsewhere(given: str | None, block: str | None, refused: bool) -> None:
    if refused:
        with pytest.raises(JobError, match="its key is not sent to https://elsewhere"):
            check_block_address(given, block, "mine")
    else:
        check_block_address(given, block, "mine")


@pytest.mark.usefixtures("prefect_server")
def test_a_blocks_key_never_reaches_another_address(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    from flows.run import run_batch  # noqa: PLC0415 - Prefect's import takes seconds
    from tasks.credentials import BatchProvider, register_blocks  # noqa: PLC0415

    register_blocks()
    BatchProvider(api_key="sk-mine", profile="openai").save("mine", overwrite=True)
    provider = {"credentials": "mine", "base_url": provider_server.base_url}
    with pytest.raises(JobError, match=r"its key is not sent to http://127\.0\.0\.1"):
        run_batch(make_job(["a"], provider=provider), home=str(tmp_path / "home"))
    assert provider_server.books()["calls"] == {}


def test_a_result_file_at_a_private_address_is_not_fetched_for_a_public_provider(
    provider_server: ProviderProcess, tmp_path: Path
) -> None:
    import httpx2  # noqa: PLC0415 - only here

    request = httpx2.Request("GET", provider_server.base_url)
    with pytest.raises(ProviderUnavailable, match="on this machine or a private network"):
        refuse_private("https://8.8.8.8/v1")(request)
    refuse_private("http://127.0.0.1:1/v1")(request)
    named = Profile.named("groq").overridden(base_url=provider_server.base_url, api_key_env="OVERNIGHT_KEY_TESTS")
    with Provider(named) as provider, pytest.raises(ProviderUnavailable, match="groq has none: it is not fetched"):
        provider.download(f"{provider_server.base_url}/files/file-1/content", tmp_path / "a")
    assert provider_server.books()["calls"] == {}


@pytest.mark.parametrize(
    ("address", "private"),
    [("http://127.0.0.1/x", True), ("http://10.1.2.3/", True), ("http://169.254.169.254/latest", True),
     ("http://[::1]:80/", True), ("http://localhost:1/", True), ("https://8.8.8.8/", False)],
)  # fmt: skip
def test_private_addresses_are_known(address: str, private: bool) -> None:
    assert is_private(address) is private


def test_files_and_folders_of_a_home_are_for_their_owner_alone_whatever_the_umask(
    make_job: MakeJob, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        run, _ = run_job(make_job(["a", "[429] b"]), tmp_path / "home")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (run.home, *run.home.rglob("*"))}
    wrong = {path.name: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)}
    assert wrong == {}
    assert {"ledger.db", "joined.parquet", "rows.parquet"} <= {path.name for path in modes}


def test_no_order_reaches_a_terminal() -> None:
    assert printable(f"a{CLIPBOARD}b\tc\nd\x9b31m") == "a␛]52;c;cm0gLXJmIH4=␇b\tc\nd�31m"
    assert printable("a\u202egnp.exe") == "a�gnp.exe"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![x](https://tracker.example/p.png)", "!\\[x\\](https&#58;//tracker.example/p.png)"),
        ("<script>", "&lt;script>"),
        ("see www.example.com\nnow", "see www&#46;example.com now"),
        ("`code`", "\\`code\\`"),
        ("plain text, 5 < 6 & more", "plain text, 5 &lt; 6 &amp; more"),
    ],
)
def test_text_from_elsewhere_makes_no_markdown(text: str, shown: str) -> None:
    assert inline(text) == shown


def test_ids_and_cells_stay_in_their_places() -> None:
    assert code("a`b\nc") == "`a b c`"
    assert table(["x"], [["a|b"]]).splitlines()[-1] == "| a\\|b |"


def test_reports_show_what_rows_and_providers_say_as_text() -> None:
    image = "![x](https://tracker.example/p.png)"
    groups = {("failed", image): Group(1, [("id`", f"{image} {CLIPBOARD}")])}
    texts = [samples_text("job", [{image: image, "answer": CLIPBOARD}], []), diagnosis_text("job", [], groups)]
    for text in texts:
        assert "](" not in text.replace("\\](", "")
        assert "\x1b" not in text
        assert "https://" not in text
    assert "pie" in pie("rows", [("succeeded", 1, "#ffffff")])


@pytest.mark.parametrize("home", ["[/prod]", "[bold]runs"])
def test_a_home_whose_name_looks_like_markup_and_a_batch_that_says_it_are_only_text(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, home: str
) -> None:
    run = build(make_job(["a"]), tmp_path / home)
    with Provider(run.job.profile) as provider:
        path = next(run.folder.requests.iterdir())
        uploaded = provider.upload(path)
        provider.create(uploaded.id, "/v1/chat/completions", {"overnight_job": f"[/bold] {CLIPBOARD}"})
    script = (
        "import sys\nfrom rich.console import Console\nfrom flows.terminal import show_table, show_markdown\n"
        "from tasks.account import list_account\nfrom overnight.job.jobfile import read_provider\nfrom pathlib import Path\n"
        f"found = list_account.fn(read_provider({{'profile': 'custom', 'base_url': {provider_server.base_url!r}}}), "
        f"Path({str(tmp_path / home)!r}), 9)\n"
        "show_table([vars(one) for one in found], Console(width=300))\nshow_markdown(found[0].job, Console())\n"
    )
    environment = {**os.environ, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    done = subprocess.run([sys.executable, "-c", script.replace("import sys\n", "import sys\nimport tasks.account\ntasks.account.create_table_artifact = lambda *a, **k: None\n")],
                          cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[/bold]" in done.stdout
    assert "\x1b]52" not in done.stdout
