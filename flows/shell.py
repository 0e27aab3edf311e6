"""What every command does around its flow: errors become exit codes, Prefect is set up, JSON is printed."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import sys
import tomllib
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from overnight.errors import JobError, OvernightError
from overnight.text import printable

_WIDE = 240
"""Columns of a table that goes to a file or a pipe, where ids should be whole."""
_MINUTES_VARIABLE = "OVERNIGHT_SERVER_MINUTES"
"""How long the Prefect server that a command starts outlives the last command; 0: none outlives its command."""
_YOUNG_OBJECTS = 200_000
"""How many new objects Python's collector of cycles waits for."""
OK, COULD_NOT_RUN, TOO_MANY_FAILED, INTERRUPTED = 0, 1, 2, 130


def quicken() -> None:
    """Has a command start and end sooner, by some tenths of a second each.

    Prefect and the provider's SDK make a million objects that stay: the collector of cycles looks for garbage among
    them again and again, and once more at the end. The SDK's other HTTP client, which no command uses, brings aiohttp.
    """
    gc.set_threshold(_YOUNG_OBJECTS)
    atexit.register(gc.freeze)
    sys.modules.setdefault("openai._vendor.httpx_aiohttp", None)  # type: ignore[arg-type]  # Python's "not found"


def guarded(command: Callable[[], int]) -> int:
    """Turns what goes wrong into one message and an exit code."""
    stderr = Console(stderr=True)
    try:
        return command()
    except OvernightError as error:
        stderr.print("[bold red]error:[/] ", end="")
        stderr.print(printable(error), markup=False, highlight=False, soft_wrap=True)
        return COULD_NOT_RUN
    except OSError as error:  # such as a full disk: what stands under its final name is whole, the rest is made anew
        stderr.print(
            f"[bold red]error:[/] {plain(error.strerror or error)}: {plain(error.filename or 'while writing')}; ",
            end="",
        )
        stderr.print(
            "mend it and run the same command again: it goes on where it was, and nothing is sent twice", soft_wrap=True
        )
        return COULD_NOT_RUN
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        stderr.print(
            "Stopped. Batches that were sent go on at the provider (the embedded endpoint stops with this process); "
            "run the same command again to go on: nothing is sent twice."
        )
        return INTERRUPTED


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, as Python or as a flow run tells it; Prefect is not imported for the question."""
    exceptions = sys.modules.get("prefect.exceptions")
    return isinstance(error, KeyboardInterrupt | getattr(exceptions, "CancelledRun", KeyboardInterrupt))


def plain(text: Any) -> str:
    """Text from elsewhere for a console: neither Rich's markup nor the terminal's orders."""
    return escape(printable(text))


def under_prefect(command: Callable[[Console], int], *, as_json: bool, verbose: bool, arrow: bool = True) -> int:
    """Runs a command that starts flows; what it says goes to stderr where stdout is for JSON.

    Args:
        command: what to run.
        as_json: whether stdout is for JSON.
        verbose: whether Prefect's log lines are shown too.
        arrow: whether Arrow is made ready at once: a job file is read without, so that what is wrong with it is said
            at once.
    """

    def prepared() -> int:
        console = Console(stderr=as_json)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _WIDE
        configure_logging(console, verbose=verbose)
        if arrow:
            spare_pandas()
        return command(console)

    return guarded(prepared)


def spare_pandas() -> None:
    """Keeps Arrow from importing pandas in a process that has no DataFrame: half a second and 50 MB.

    pyarrow imports it with the first list that it is given, to see whether it is a Series, and asks once.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa  # noqa: PLC0415 - a quick command does without

    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(absent)


class _Absent(MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(self, name: str, *_about: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def has_server() -> bool:
    """Whether flows report to a server: the environment, or Prefect's active profile, names one.

    Read without Prefect, which takes seconds to import.
    """
    if (url := os.environ.get("PREFECT_API_URL")) is not None:
        return bool(url)
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        kept = tomllib.loads(Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).read_text())
        active = os.environ.get("PREFECT_PROFILE", kept.get("active"))
        return bool(kept["profiles"][active].get("PREFECT_API_URL"))
    except (OSError, ValueError, LookupError, AttributeError):
        return False


def reach_prefect(console: Console) -> None:
    """Has flows report to the server that is named; else to one of ours, which the next commands use too."""
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415 - Prefect takes a second to import

    if PREFECT_API_URL.value():
        return
    minutes = _server_minutes()
    if minutes > 0:
        from prefect.context import refresh_global_settings_context  # noqa: PLC0415

        from flows.own_server import reach_server  # noqa: PLC0415 - not for every command

        try:
            os.environ["PREFECT_API_URL"] = reach_server(console, minutes)
        except OSError as error:
            console.print(f"no Prefect server can be shared between commands: {plain(error)}", style="dim")
        else:
            refresh_global_settings_context()
            return
    console.print(
        "No PREFECT_API_URL: Prefect starts a server of its own, which takes a moment (make up keeps one running).",
        style="dim",
    )


def _server_minutes() -> float:
    told = os.environ.get(_MINUTES_VARIABLE, "10")
    try:
        return float(told)
    except ValueError:
        raise JobError(f"{_MINUTES_VARIABLE} is {told!r}: write a number of minutes, or 0") from None


def printed(values: dict[str, Any], *, as_json: bool) -> int:
    """Prints the outcome as one line of JSON, where that is asked for."""
    if as_json:
        print(json.dumps(values, default=str))  # noqa: T201 - it is the output
    return OK


class _PlainFormatter(logging.Formatter):
    """Log lines hold what providers say: no order of theirs reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(console: Console, *, verbose: bool) -> None:
    """Log lines of overnight's own on stderr where there is no live display; Prefect's stay on its page.

    Has to run before Prefect is imported: its server, a child process, inherits the level.
    """
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not verbose and not console.is_terminal:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        ours = logging.getLogger("overnight")
        ours.setLevel(logging.INFO)
        ours.addHandler(lines)
