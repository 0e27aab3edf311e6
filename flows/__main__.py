"""The command line: `overnight`, or `python -m flows`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from overnight.endpoint.settings import Settings
from overnight.errors import OvernightError
from overnight.jobfile import job_schema, load_job
from overnight.run import Run, open_run

app = App(
    name="overnight",
    help="Run a dataset through an LLM Batch API: every row accounted for, no row paid for twice.",
    version=lambda: version("overnight"),
    help_on_error=False,
)

Override = Annotated[
    list[str] | None,
    Parameter(
        name="--set", negative=(), help="A setting over the job file's: key=value, such as limits.max_requests=100."
    ),
]
Home = Annotated[str | None, Parameter(help="The folder of runs; else OVERNIGHT_HOME, else data/runs.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object as the last line of stdout.")]
Verbose = Annotated[bool, Parameter(negative=(), help="Show Prefect's log lines too.")]

OK, COULD_NOT_RUN, TOO_MANY_FAILED, INTERRUPTED = 0, 1, 2, 130


@app.command(name="try")
def try_(*, home: Home = None, json_: Json = False, verbose: Verbose = False) -> int:
    """Run the example job on the embedded model and show the answers: no key, no cost, two minutes."""
    checkout = Path(__file__).parent.parent
    job = load_job(checkout / "data/jobs/reviews.yaml", [f"dataset.path={checkout / 'data/samples/reviews.csv'}"])
    return _guarded(lambda: _run(open_run(job, home=home), as_json=json_, verbose=verbose, show=True))


@app.command
def plan(job: Path, *, set_: Override = None, home: Home = None, json_: Json = False, verbose: Verbose = False) -> int:
    """Show what a job would send and cost, and its first requests; spend nothing.

    Args:
        job: the job file.
    """
    return _guarded(lambda: _plan(open_run(load_job(job, set_ or ()), home=home), as_json=json_, verbose=verbose))


@app.command
def run(job: Path, *, set_: Override = None, home: Home = None, json_: Json = False, verbose: Verbose = False) -> int:
    """Run a job to its joined table; run again, it goes on where it was.

    Exit code 0: every row has its verdict, and no more rows failed than max_failed_fraction. 2: more did; all files
    are written. 1: it could not run.

    Args:
        job: the job file.
    """
    return _guarded(lambda: _run(open_run(load_job(job, set_ or ()), home=home), as_json=json_, verbose=verbose))


@app.command
def endpoint(settings: Annotated[Settings, Parameter(name="*")] = Settings()) -> int:  # noqa: B008 - frozen, so shared
    """Serve the OpenAI Files and Batches API over a real-time API, by default the embedded model."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the embedded model's threads would spin on busy cores
    from overnight.endpoint.server import serve  # noqa: PLC0415 - a server's imports are not for every command

    return serve(settings)


@app.command
def schema() -> int:
    """Print the JSON Schema of job files, for editors."""
    print(json.dumps(job_schema(), indent=2))  # noqa: T201 - it is the output
    return OK


def _guarded(command: Callable[[], int]) -> int:
    """Turns what goes wrong into one message and an exit code."""
    stderr = Console(stderr=True)
    try:
        return command()
    except OvernightError as error:
        stderr.print("[bold red]error:[/] ", end="")
        stderr.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return COULD_NOT_RUN
    except OSError as error:  # such as a full disk: what stands under its final name is whole, the rest is made anew
        stderr.print(
            f"[bold red]error:[/] {error.strerror or error}: {error.filename or 'while writing'}; mend it and ", end=""
        )
        stderr.print("run the same command again: it goes on where it was, and nothing is sent twice", soft_wrap=True)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        stderr.print(
            "Stopped. Batches that were sent go on at the provider (the embedded endpoint stops with this process); "
            "run the same command again to go on: nothing is sent twice."
        )
        return INTERRUPTED


def _run(opened: Run, *, as_json: bool, verbose: bool, show: bool = False) -> int:
    console = Console(stderr=as_json)
    _configure_prefect(console, verbose=verbose)
    from flows.run import run_batch  # noqa: PLC0415 - Prefect takes seconds to import
    from flows.terminal import progress, show_answers, show_outcome  # noqa: PLC0415
    from overnight.connect import check_address  # noqa: PLC0415
    from tasks.build import check_run  # noqa: PLC0415

    check_run(opened)
    check_address(opened)
    _announce_server(console)
    with progress(opened, console):
        summary = run_batch(opened.job, home=str(opened.home))
    if show:
        show_answers(summary, opened.job, console)
    show_outcome(summary, console)
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201 - it is the output
    return OK if summary.within_bounds else TOO_MANY_FAILED


def _plan(opened: Run, *, as_json: bool, verbose: bool) -> int:
    console = Console(stderr=as_json)
    _configure_prefect(console, verbose=verbose)
    from rich.markdown import Markdown  # noqa: PLC0415

    from flows.plan import plan_batch  # noqa: PLC0415
    from tasks.build import check_run  # noqa: PLC0415
    from tasks.plan import check_plan  # noqa: PLC0415

    check_plan(opened)
    check_run(opened)
    _announce_server(console)
    made = plan_batch(opened.job, home=str(opened.home))
    if console.is_terminal:
        console.print(Markdown(made.text))
    else:
        console.print(made.text, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        fields = {name: value for name, value in vars(made).items() if name != "text"}
        print(json.dumps(fields))  # noqa: T201 - it is the output
    return OK


def _configure_prefect(console: Console, *, verbose: bool) -> None:
    from flows.terminal import configure_logging  # noqa: PLC0415 - a quick command does without

    configure_logging(console, verbose=verbose)


def _announce_server(console: Console) -> None:
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415

    if not PREFECT_API_URL.value():
        console.print("No PREFECT_API_URL: Prefect starts a server of its own, which takes a moment.", style="dim")


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
