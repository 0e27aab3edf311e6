"""The command line: `overnight`, or `python -m flows`."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from flows.shell import (
    COULD_NOT_RUN,
    OK,
    TOO_MANY_FAILED,
    guarded,
    has_server,
    plain,
    printed,
    quicken,
    reach_prefect,
    spare_pandas,
    under_prefect,
)
from overnight.endpoint.settings import Settings
from overnight.store.home import JobFolder, home_path, shown
from overnight.store.objects import address, is_kept
from overnight.text import counted_of, duration

if TYPE_CHECKING:  # pydantic, Arrow and the ledger are for the commands that use them
    from overnight.job.job import Job
    from overnight.ledger.run import Run
    from overnight.reports.status import JobStatus

app = App(
    name="overnight",
    help="Run a dataset through an LLM Batch API: every row accounted for, no row paid for twice.",
    version=lambda: version("overnight"),
    help_on_error=False,
)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Common:
    """Options of every command that starts a flow."""

    home: Annotated[str | None, Parameter(help="The folder of runs; else OVERNIGHT_HOME, else data/runs.")] = None
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object as the last line of stdout.")] = False
    verbose: Annotated[bool, Parameter(negative=(), help="Show Prefect's log lines too.")] = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class JobOptions(Common):
    """Options of a command that reads a job file."""

    overrides: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative=(),
            help="A setting over the job file's: key=value, such as limits.max_requests=100.",
        ),
    ] = None

    def open(self, job: Path) -> Run:
        """Reads a job file with its overrides."""
        from overnight.job.jobfile import load_job  # noqa: PLC0415 - pydantic is not for every command

        read = load_job(job, self.overrides or ())
        spare_pandas()
        return _opened(read, self.home)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class SendOptions(JobOptions):
    """Options of a command that may send."""

    yes: Annotated[
        bool, Parameter(name=["--yes", "-y"], negative=(), help="Send without asking, whatever it may cost.")
    ] = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class ProviderOptions(Common):
    """Options of a command that looks at an account."""

    overrides: Annotated[
        list[str] | None,
        Parameter(
            name="--set", negative=(), help="A setting of the provider: key=value, such as base_url=http://…/v1."
        ),
    ] = None

    def choose(self, provider: str) -> dict[str, Any]:
        """A provider by its profile's name or a job file, with its overrides."""
        from overnight.job.jobfile import choose_provider, with_overrides  # noqa: PLC0415 - as above

        chosen = choose_provider(provider).model_dump(mode="json", exclude_unset=True)
        return with_overrides(chosen, self.overrides or ())


@app.command(name="try")
def try_(*, options: Common = Common()) -> int:
    """Run the example job on the embedded model and show the answers: no key, no cost, two minutes."""
    example = Path(__file__).with_name("example")

    def command(console: Console) -> int:
        from overnight.job.jobfile import load_job  # noqa: PLC0415 - pydantic is not for every command

        job = load_job(example / "reviews.yaml", [f"dataset.path={example / 'reviews.csv'}"])
        return _run(_opened(job, options.home), console, yes=True, as_json=options.json, elsewhere=True)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def plan(job: Path, *, options: JobOptions = JobOptions()) -> int:
    """Show what a job would send and cost, and its first requests; spend nothing.

    Args:
        job: the job file.
    """

    def command(console: Console) -> int:
        return _plan(options.open(job), console, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose, arrow=False)


@app.command
def run(job: Path, *, options: SendOptions = SendOptions()) -> int:
    """Run a job to its joined table; run again, it goes on where it was.

    Exit code 0: every row has its verdict, and no more rows failed than max_failed_fraction. 2: more did; all files
    are written. 1: it could not run.

    Args:
        job: the job file.
    """

    def command(console: Console) -> int:
        _say_begun(console, job)
        return _run(options.open(job), console, yes=options.yes, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose, arrow=False)


@app.command
def submit(job: Path, *, options: SendOptions = SendOptions()) -> int:
    """Build, validate and send a job, and end; `overnight collect` does the rest.

    Args:
        job: the job file.
    """

    def command(console: Console) -> int:
        _say_begun(console, job)
        opened = _checked(options.open(job))
        from flows.approval import asked_by  # noqa: PLC0415 - Prefect takes seconds to import
        from flows.submit import submit_batch  # noqa: PLC0415
        from flows.terminal import ask  # noqa: PLC0415

        reach_prefect(console)
        with asked_by(lambda plan: ask(plan, console)):
            now = submit_batch(opened.job, home=address(opened.home), approve=options.yes)
        return _show_statuses([now], console, options)

    return under_prefect(command, as_json=options.json, verbose=options.verbose, arrow=False)


@app.command
def collect(job: str | None = None, *, options: Common = Common()) -> int:
    """Look at all open batches once; fetch, parse, send again, and join what is done.

    Args:
        job: the name of one job, or its file; else all jobs of the home.
    """

    def command(console: Console) -> int:
        from flows.collect import collect_batches  # noqa: PLC0415 - Prefect takes seconds to import

        reach_prefect(console)
        return _show_statuses(collect_batches(_name_of(job) if job else None, options.home), console, options)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def cancel(job: str, *, options: Common = Common()) -> int:
    """Cancel a job's batches; keep and join what they answered.

    Args:
        job: the job's name, or its file.
    """

    def command(console: Console) -> int:
        from flows.cancel import CANCELLING_SECONDS, cancel_batch  # noqa: PLC0415 - Prefect takes seconds to import

        reach_prefect(console)
        console.print(
            f"Cancelled batches may take up to {duration(CANCELLING_SECONDS)} to end. Ctrl-C is safe: "
            "overnight collect, or cancel again, takes what they answered.",
            style="dim",
            soft_wrap=True,
        )
        return _show_statuses([cancel_batch(job, options.home)], console, options)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def recover(
    job: str,
    *,
    unsent: Annotated[
        bool, Parameter(negative=(), help="Request files of which no batch is listed were never sent: they may be.")
    ] = False,
    same_account: Annotated[
        bool, Parameter(negative=(), help="The key is a new one of the account that open batches were sent with.")
    ] = False,
    options: Common = Common(),
) -> int:
    """Take up a job whose ledger is gone, another one, or older than what was sent; or whose account has a new key.

    Lists the provider's batches and gives those of the job back to the ledger. Spends nothing; run or collect goes on.

    Args:
        job: its job file; or its name, where the ledger knows it.
    """

    def command(console: Console) -> int:
        from flows.recover import recover_job  # noqa: PLC0415 - Prefect takes seconds to import

        reach_prefect(console)
        found = recover_job(job, options.home, unsent, same_account)
        console.print(
            f"{counted_of(found.batches, 'batch')} taken up, of {counted_of(found.files, 'request file')} that the "
            f"ledger did not know; {found.unsent:,} without one; a new key for {counted_of(found.rebound, 'batch')}",
            soft_wrap=True,
        )
        if found.without_file:
            console.print(f"{found.without_file:,} batches of the job have no request file here: they are left alone")
        console.print("overnight collect, or a run, goes on with it")
        return printed(vars(found), as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command(name="list")
def list_(provider: str, *, limit: int = 100, options: ProviderOptions = ProviderOptions()) -> int:
    """List the batches of an account, and which of them are ours.

    Args:
        provider: a profile's name, or a job file that names it.
        limit: how many, newest first.
    """

    def command(console: Console) -> int:
        from flows.terminal import show_table  # noqa: PLC0415

        found = [vars(one) for one in _listed(options.choose(provider), limit, options.home)]
        show_table(found, console)
        return printed({"batches": found}, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def diagnose(batch: str, *, options: Common = Common()) -> int:
    """Tell what went wrong in a batch or a job, with examples and what to do.

    Args:
        batch: a batch id, or the name of a job.
    """

    def command(console: Console) -> int:
        from flows.terminal import show_markdown  # noqa: PLC0415 - rich's tables are not for every command

        text = _diagnosis(batch, options.home)
        show_markdown(text, console)
        return printed({"diagnosis": text}, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def init(
    dataset: str,
    *,
    task: str = "classify",
    column: str | None = None,
    labels: Annotated[
        list[str] | None,
        Parameter(negative=(), help="For classify: one or more, as --labels good bad.", consume_multiple=True),
    ] = None,
    label_name: str = "label",
    model: str | None = None,
    provider: str = "openai",
    output: Path | None = None,
) -> int:
    """Write a commented starter job for a dataset: its columns, a task, safe limits.

    Args:
        dataset: a csv, Parquet or jsonl file, a folder or glob of them, or an address.
        task: classify, generate, summarize, translate, extract or embed.
        label_name: for classify: a word for what the labels tell, such as sentiment.
        column: what the model is asked about; else the column of the longest texts.
        model: as the provider names it.
        provider: a profile's name.
        output: the job file; else the dataset's name with .yaml, in this folder.
    """  # fmt: skip

    def command(console: Console) -> int:
        from overnight.job.starter import Asked  # noqa: PLC0415 - templates and Arrow are not for every command
        from overnight.reports.starting import write_starter  # noqa: PLC0415

        asked = Asked(task, column, tuple(labels or ()), model, provider, label_name)
        written = write_starter(dataset, asked, output)
        console.print(f"wrote {plain(shown(written))}: look through it, then: overnight plan {plain(shown(written))}",
                      soft_wrap=True, highlight=False)  # fmt: skip
        return OK

    return under_prefect(command, as_json=False, verbose=False)


@app.command
def status(job: str | None = None, *, options: Common = Common()) -> int:
    """List the jobs of the home: state, rows, cost, age, and what holds them.

    Args:
        job: only this one, by its name or file.
    """

    def command(console: Console) -> int:
        from flows.terminal import show_jobs  # noqa: PLC0415 - rich's tables and the ledger are not for every command
        from overnight.reports.status import job_rows  # noqa: PLC0415

        found = job_rows(home_path(options.home), _name_of(job) if job else None)
        show_jobs(found, console)
        return printed({"jobs": [one._asdict() for one in found]}, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def show(
    job: str,
    *,
    status: Annotated[str | None, Parameter(help="Only rows of this status, such as failed.")] = None,
    where: Annotated[str | None, Parameter(help='Only rows for which this SQL holds, such as "stars < 3".')] = None,
    columns: Annotated[str | None, Parameter(help="Which columns, as a,b,c; `all` for all.")] = None,
    diff: Annotated[str | None, Parameter(help="The rows where the answers of this other job differ.")] = None,
    limit: int = 20,
    options: Common = Common(),
) -> int:
    """Show rows and their answers on the terminal.

    Args:
        job: its name or file.
        limit: how many rows.
    """

    def command(console: Console) -> int:
        from flows.terminal import show_look  # noqa: PLC0415 - rich's tables and DuckDB are not for every command
        from overnight.ledger.run import recorded_run  # noqa: PLC0415
        from overnight.reports.look import differences, joined_table, look, usual_columns  # noqa: PLC0415
        from overnight.store.table import quoted, text  # noqa: PLC0415

        run = recorded_run(_name_of(job), options.home)
        table = joined_table(run)
        if diff is not None:
            seen = differences(run, recorded_run(_name_of(diff), options.home), limit=limit)
        else:
            wanted = columns.split(",") if columns and columns != "all" else [] if columns else usual_columns(run)
            told = quoted(run.job.output.prefix + "status")
            status_is = f"{told} = {text(status)}" if status else None
            conditions = " and ".join(f"({one})" for one in (status_is, where) if one)
            seen = look(table, wanted, where=conditions or None, limit=limit)
        show_look(seen, console)
        rows = [dict(zip(seen.columns, row, strict=True)) for row in seen.rows]
        return printed({"found": seen.found, "total": seen.total, "rows": rows}, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def view(
    job: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8644,
    bundle: Path | None = None,
    home: str | None = None,
) -> int:
    """Look at jobs, rows and answers on a page of this machine: sort, search, filter, charts, compare, every attempt.

    Args:
        job: the job to open, by its name or file.
        host: the address to listen on; beyond this machine the page asks for a token, which is printed.
        port: the port; 0 takes a free one.
        bundle: write the page as files into this folder instead: it opens from a disk or any web server. It holds the
            rows, prompts and answers of the job, or of all that are joined where none is named.
        home: the folder of runs; else OVERNIGHT_HOME, else data/runs.
    """

    def command(console: Console) -> int:
        if bundle is not None:
            from overnight.view.bundle import write_bundle  # noqa: PLC0415 - the same

            rows = write_bundle(home_path(home), [_name_of(job)] if job else [], bundle)
            index = plain(shown(bundle / "index.html"))
            console.print(f"wrote {counted_of(rows, 'row')}: open {index}", soft_wrap=True, highlight=False)
            return OK
        from overnight.view.app import serve  # noqa: PLC0415 - a server's imports are not for every command

        def listening(address: str) -> None:
            console.print(f"{address}   (Ctrl-C stops)", highlight=False, soft_wrap=True)

        serve(home_path(home), host, port, _name_of(job) if job else None, listening)
        return OK

    return under_prefect(command, as_json=False, verbose=False)


@app.command
def export(
    job: str,
    file: Path,
    *,
    to: Annotated[str | None, Parameter(help="csv, jsonl, parquet or duckdb; else by the file's ending.")] = None,
    where: Annotated[str | None, Parameter(help="Only rows for which this SQL holds.")] = None,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace a file that is there.")] = False,
    options: Common = Common(),
) -> int:
    """Write a job's joined table as csv, jsonl, Parquet, or a DuckDB database.

    Args:
        job: its name or file.
        file: where to.
    """

    def command(console: Console) -> int:
        from overnight.errors import JobError  # noqa: PLC0415 - DuckDB is not for every command
        from overnight.ledger.run import recorded_run  # noqa: PLC0415
        from overnight.reports.look import export as write  # noqa: PLC0415
        from overnight.reports.look import format_of, joined_table  # noqa: PLC0415

        if file.exists() and not overwrite:
            raise JobError(f"{file} is there already: --overwrite replaces it")
        table = joined_table(recorded_run(_name_of(job), options.home))
        rows = write(table, file, format_of(file, to), where=where)
        console.print(f"wrote {counted_of(rows, 'row')} to {plain(shown(file))}", soft_wrap=True, highlight=False)
        return printed({"rows": rows, "file": str(file)}, as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def clean(
    provider: str,
    *,
    older_than_hours: float = 72,
    delete: Annotated[
        bool, Parameter(negative=(), help="Delete; without it, only tell what would be deleted.")
    ] = False,
    options: ProviderOptions = ProviderOptions(),
) -> int:
    """Delete our files at a provider that nobody needs any more, orphans among them.

    Args:
        provider: a profile's name, or a job file that names it.
        older_than_hours: younger files stay.
    """

    def command(console: Console) -> int:
        from flows.clean import clean_files  # noqa: PLC0415 - Prefect takes seconds to import

        reach_prefect(console)
        done = clean_files(options.choose(provider), older_than_hours, not delete, options.home)
        what = f"{done.deleted:,} deleted" if delete else f"{done.deletable:,} can be deleted: --delete does it"
        what = what if done.deletable else "nothing to delete"
        console.print(f"{done.files:,} files, {done.ours:,} of them ours, {done.orphans:,} orphans; {what} "
                      f"({done.bytes:,} bytes)")  # fmt: skip
        return printed(vars(done), as_json=options.json)

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def doctor(provider: str, *, options: ProviderOptions = ProviderOptions()) -> int:
    """Try whether an endpoint does all that a job needs, call by call; spend nothing.

    Exit code 0: a job can run there. 2: it cannot. 1: it could not be tried.

    Args:
        provider: a profile's name, or a job file that names it.
    """

    def command(console: Console) -> int:
        from flows.doctor import doctor as examine  # noqa: PLC0415 - Prefect takes seconds to import
        from flows.terminal import show_markdown  # noqa: PLC0415

        reach_prefect(console)
        found = examine(options.choose(provider), options.home)
        show_markdown(found.text, console)
        printed({"passed": found.passed, "checks": [one._asdict() for one in found.checks]}, as_json=options.json)
        return OK if found.passed else TOO_MANY_FAILED

    return under_prefect(command, as_json=options.json, verbose=options.verbose)


@app.command
def endpoint(settings: Annotated[Settings, Parameter(name="*")] = Settings()) -> int:  # noqa: B008 - frozen, so shared
    """Serve the OpenAI Files and Batches API over a real-time API, by default the embedded model."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the embedded model's threads would spin on busy cores
    from overnight.endpoint.server import serve  # noqa: PLC0415 - a server's imports are not for every command

    return serve(settings)


@app.command
def webhook(*, host: str = "127.0.0.1", port: int = 8643, home: str | None = None) -> int:
    """Receive OpenAI's batch.* webhooks, and collect at once when one arrives.

    The secret comes from OPENAI_WEBHOOK_SECRET. Polling goes on as it is: a webhook only makes it sooner.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.
        home: the folder of runs; else OVERNIGHT_HOME, else data/runs.
    """
    from flows.webhook import serve  # noqa: PLC0415 - a server's imports are not for every command

    return guarded(lambda: serve(host, port, home))


@app.command
def register() -> int:
    """Register the Batch Provider block with the Prefect server, so that its page has a form for keys."""

    def command() -> int:
        from tasks.credentials import register_blocks  # noqa: PLC0415 - Prefect takes seconds to import

        register_blocks()
        print("registered: make one on Prefect's page under Blocks, and name it in jobs as provider.credentials")  # noqa: T201 - it is the output
        return OK

    return guarded(command)


@app.command
def schema() -> int:
    """Print the JSON Schema of job files, for editors."""
    from overnight.job.jobfile import job_schema  # noqa: PLC0415 - pydantic is not for every command

    print(json.dumps(job_schema(), indent=2))  # noqa: T201 - it is the output
    return OK


def _run(opened: Run, console: Console, *, yes: bool, as_json: bool, elsewhere: bool = False) -> int:
    from flows.approval import asked_by  # noqa: PLC0415 - Prefect takes seconds to import
    from flows.run import run_batch  # noqa: PLC0415
    from flows.terminal import ask, progress, show_elsewhere, show_outcome, show_overview  # noqa: PLC0415
    from overnight.reports.status import sent_since  # noqa: PLC0415

    started = time.time()
    opened = _checked(opened)
    reach_prefect(console)
    with progress(opened, console), asked_by(lambda plan: ask(plan, console)):
        summary = run_batch(opened.job, home=address(opened.home), approve=yes)
    names = [one.job.name for one in opened.variants().values()] or [opened.job.name]
    sent = sent_since([shard for name in names for shard in opened.ledger.shards(name)], started)
    show_outcome(summary, sent, time.time() - started, console)
    show_overview(opened, summary, console)
    if elsewhere:
        show_elsewhere(summary, console)
    printed(summary.as_json(), as_json=as_json)
    return OK if summary.within_bounds else TOO_MANY_FAILED


def _say_begun(console: Console, job: Path) -> None:
    """The first line: Prefect and the provider's SDK take seconds to import."""
    console.print(f"{plain(job)}: checking the job, its dataset and its provider", style="dim", soft_wrap=True)


def _plan(opened: Run, console: Console, *, as_json: bool) -> int:
    from flows.terminal import show_markdown  # noqa: PLC0415 - these are not for every command
    from overnight.reports.dry_run import check_plan, plan_job  # noqa: PLC0415

    check_plan(opened)
    if has_server():
        from flows.plan import plan_batch  # noqa: PLC0415 - Prefect takes seconds to import

        made = plan_batch(opened.job, home=address(opened.home))
    else:
        made = plan_job(opened)
    show_markdown(made.text, console)
    printed({name: value for name, value in vars(made).items() if name != "text"}, as_json=as_json)
    return COULD_NOT_RUN if made.hopeless else OK


def _opened(job: Job, home: str | None) -> Run:
    """The run of a job; what it leaves out of its provider, its block gives."""
    if job.provider.credentials is None:
        from overnight.ledger.run import open_run  # noqa: PLC0415 - Arrow and the ledger are not for every command

        return open_run(job, home=home)
    from tasks.credentials import open_job  # noqa: PLC0415 - Prefect takes seconds to import

    reach_prefect(Console(stderr=True))  # which has the block
    return open_job(job, home=home)


def _name_of(job: str) -> str:
    """A job's name, given that or its file."""
    if Path(job).suffix not in (".yaml", ".yml", ".json"):
        return job
    from overnight.job.jobfile import load_job  # noqa: PLC0415 - pydantic is not for every command

    return load_job(job).name


def _listed(provider: dict[str, Any], limit: int, home: str | None) -> list[Any]:
    """The batches of an account: by the flow where there is a server to show them, or a block to read."""
    if has_server() or provider.get("credentials"):
        from flows.list import list_batches  # noqa: PLC0415 - Prefect takes seconds to import

        return list_batches(provider, limit, home)
    from overnight.job.jobfile import read_provider  # noqa: PLC0415 - these take a second to import
    from overnight.providers.connect import connect  # noqa: PLC0415
    from overnight.providers.listing import listed_batches  # noqa: PLC0415
    from overnight.providers.local import stop_local_endpoint  # noqa: PLC0415

    folder = home_path(home)
    try:
        with connect(read_provider(provider).as_profile, folder) as account:
            return listed_batches(account, folder, limit)
    finally:
        stop_local_endpoint(folder)


def _diagnosis(name: str, home: str | None) -> str:
    """What went wrong: by the flow where there is a server to show it."""
    if has_server():
        from flows.diagnose import diagnose_batch  # noqa: PLC0415 - Prefect takes seconds to import

        return diagnose_batch(name, home)
    from overnight.reports.diagnosis import diagnosis_of  # noqa: PLC0415 - the ledger is not for every command

    return diagnosis_of(name, home_path(home))


def _checked(opened: Run) -> Run:
    """Says what is wrong with a job, its dataset or its provider before Prefect is started."""
    from overnight.builds.checks import check_run  # noqa: PLC0415
    from overnight.providers.connect import check_address  # noqa: PLC0415 - these take a second to import

    for one in opened.variants().values() or [opened]:
        check_run(one)
        check_address(one)
    return opened


def _show_statuses(statuses: list[JobStatus], console: Console, options: Common) -> int:
    from flows.terminal import status_line  # noqa: PLC0415 - rich tables are not for every command

    for now in statuses:
        console.print(plain(status_line(now)), soft_wrap=True, highlight=False)
        joined = JobFolder(home_path(options.home), now.job).joined
        if now.done and is_kept(joined):
            console.print(f"  joined  {plain(shown(joined))}", soft_wrap=True, highlight=False)
    if not statuses:
        console.print("no job has anything left to do")
    return printed({"jobs": [dataclasses.asdict(now) for now in statuses]}, as_json=options.json)


def main() -> None:
    """Runs the command line."""
    quicken()
    app()


if __name__ == "__main__":
    main()
