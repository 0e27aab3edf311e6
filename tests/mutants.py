"""Takes each protection away in turn, and shows which test notices.

    python -m tests.mutants [NAME ...]

A protection is a place in the code: its text, and what stands there once it is gone. The tests named beside it run in a
copy of the checkout; the first that fails has caught the mutant. Ends with an error where one survives, or where the text
of a protection is not in the code any more.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.server import ROOT


class Mutant(NamedTuple):
    """A protection, and how it is taken away."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    """Files and `-k` words, as pytest takes them."""


EVIDENCE, MONEY, LEDGER, KEYS = ("tests/test_evidence.py", "tests/test_money.py", "tests/test_ledger.py",
                                 "tests/test_keys.py")  # fmt: skip
SUBMIT, JUDGE, BUDGET = "tasks/submit.py", "overnight/answers/judge.py", "overnight/limits/budget.py"
DATABASE, IDENTITY, WAIT = "overnight/ledger/database.py", "overnight/ledger/identity.py", "tasks/wait.py"
MUTANTS = [
    # nothing is paid twice
    Mutant("a lost create is looked for before another", SUBMIT, "if batch.state is State.UNKNOWN:", "if False:",
           "tests/test_model.py"),
    Mutant("the intent is read after a kill", SUBMIT, "if batch.state is State.CREATING:", "if False:",
           "tests/test_crash.py"),
    Mutant("an empty listing is waited out", SUBMIT, "if time.time() < (batch.creating_at or 0)", "if 0 > (batch.creating_at or 0)",
           "tests/test_model.py tests/test_run.py"),
    Mutant("a create is not sent late", "overnight/providers/provider.py", "if time.time() > until:", "if until < 0:",
           "tests/test_provider.py"),
    Mutant("a batch made too late is cancelled", SUBMIT, "            cancel_extras(self._provider, [remote])\n",
           "            pass\n", f"{EVIDENCE} -k given_up_meanwhile"),
    Mutant("the lease is asked for with the intent", DATABASE, "if connection.execute(held).scalar() != owner:", "if False:",
           f"{LEDGER} tests/test_model.py"),
    Mutant("the lease is renewed", "overnight/ledger/lease.py", "    while not done.wait(seconds / _RENEWALS):\n",
           "    while not done.wait(seconds / _RENEWALS):\n        continue\n", f"{EVIDENCE} -k 11"),
    Mutant("renewal outlives an error", "overnight/ledger/lease.py", "trying again\", job, error)\n            continue\n",
           "trying again\", job, error)\n            return\n", f"{EVIDENCE} -k 11"),
    Mutant("work stops before its lease ends", "overnight/ledger/lease.py", "if until is not None and time.monotonic() >= until:",
           "if until is None and owner == '':", f"{EVIDENCE} -k 11"),
    Mutant("a lost lease stays lost", "overnight/ledger/lease.py", "if time.monotonic() >= _held.get(owner, 0.0):", "if owner == '':",
           f"{EVIDENCE} -k 11"),
    Mutant("the SDK repeats no create", "overnight/providers/provider.py", "with_options(max_retries=0, timeout=120)",
           "with_options(max_retries=2, timeout=120)", "tests/test_provider.py tests/test_run.py"),
    Mutant("each request has one verdict", "overnight/answers/reconcile.py", "            self._open.remove(custom_id)\n", "",
           "tests/test_run.py"),
    # evidence
    Mutant("a 404 is no loss", JUDGE, "return Judgement(Step.LIST, why)", "return Judgement(Step.GIVE_UP, why)",
           "tests/test_judge.py"),
    Mutant("two listings are ten minutes apart", JUDGE, "ABSENCE_SECONDS = 600.0", "ABSENCE_SECONDS = 0.0", f"{EVIDENCE} -k 2"),
    Mutant("a missing output file is asked for again", JUDGE, "    return Judgement(Step.LOOK_AGAIN, why)\n",
           "    return Judgement(Step.GIVE_UP, why)\n", "tests/test_judge.py"),
    Mutant("a batch is lost by a listing of the same look", JUDGE, 'history.listing == "lacks it" and (history', "(history",
           "tests/test_judge.py"),
    Mutant("an end without a file is looked at again", JUDGE, "    if bare and worked:\n", "    if bare and worked < 0:\n",
           f"tests/test_judge.py {EVIDENCE} -k 3"),
    Mutant("a lost batch is looked for", "overnight/answers/trouble.py",
           "if ended or batch.state in (State.SUBMITTED, State.LOST):", "if ended or batch.state is State.SUBMITTED:", f"{EVIDENCE} -k 2"),
    Mutant("recover concludes nothing from silence", "tasks/recover.py", "and not unsent:", "and False:", f"{EVIDENCE} -k 4"),
    Mutant("another's batch is told from ours", "overnight/providers/adoption.py", "return token_of(remote) not in (None, batch.token)",
           "return False", f"{EVIDENCE} -k 7"),
    Mutant("our token names response files", "overnight/answers/responses.py", 'return folder / f"{batch.token}.{kind}.jsonl"',
           'return folder / f"{batch.batch_id}.{kind}.jsonl"', f"{EVIDENCE} -k 7"),
    Mutant("files without all answers stay", "tasks/clean.py", "and not batch.lacks_answers", "", f"{EVIDENCE} -k 1"),
    Mutant("a fresh file is waited for", "overnight/providers/provider.py", "if error.status_code == 404 and names_file(",
           "if error.status_code == 400 and names_file(", f"{EVIDENCE} -k 6"),
    Mutant("an older ledger is noticed", IDENTITY, "    if mark.counter > record.counter:\n", "    if mark.counter < 0:\n",
           f"{EVIDENCE} -k 4"),
    Mutant("another ledger is noticed", IDENTITY, "    if mark.ledger != ledger:\n", "    if not mark.ledger:\n", f"{EVIDENCE} -k 4"),
    Mutant("the count is kept before a paid call", SUBMIT, "        keep_count(self._run)\n", "", f"{EVIDENCE} -k 4"),
    Mutant("unknown request files stop the job", IDENTITY, "if path.name not in known):", "if path.name is known):",
           f"{EVIDENCE} -k never_overwrites"),
    Mutant("a recovered batch sends nothing again that was sent", "tasks/parse.py", "    if batch.recovered:\n", "    if False:\n",
           f"{EVIDENCE} -k 4"),
    Mutant("another account is refused", "overnight/providers/account.py", "    if not strange:\n", "    if strange or not strange:\n",
           f"{EVIDENCE} -k 5"),
    Mutant("files are cleaned with their account", "overnight/providers/account.py", "return batch.account in (None, account)",
           "return True", f"{EVIDENCE} -k 5"),
    Mutant("a dataset that changed is checked row by row", "overnight/ledger/built_rows.py", "            if is_now != was:\n", "            if is_now == 0:\n",
           f"{EVIDENCE} -k 8"),
    Mutant("a dataset that changes under the join is noticed", "overnight/ledger/built_rows.py",
           "if self._run.rows().fingerprint != self.rows.fingerprint:", "if not self.rows.fingerprint:", f"{EVIDENCE} -k 8"),
    Mutant("files that cannot be listed are no empty list", "overnight/providers/adoption.py",
           '        logger.warning("files cannot be listed, an', '        logger.debug("files cannot be listed, an', f"{EVIDENCE} -k 11"),
    # money
    Mutant("open batches are reserved", BUDGET, "reserved += most_cost(", "reserved += 0 * most_cost(", MONEY),
    Mutant("a cut answer is reserved twice", BUDGET, "made = shard.requests * (output_limit(job) or 0) * 2**shard.reask\n    return",
           "made = shard.requests * (output_limit(job) or 0)\n    return", MONEY),
    Mutant("the first batch is small", BUDGET, "_TRIAL_SHARE = 0.1", "_TRIAL_SHARE = 100.0", MONEY),
    Mutant("one batch is counted before others go", BUDGET, "elif shard.model in unknown & trying:", "elif False:", MONEY),
    Mutant("counted tokens replace the guess", BUDGET, "    factor = max(1.0, counted.factor)\n    spread", "    return dense_tokens(shard.requests, shard.bytes), 1\n    factor = max(1.0, counted.factor)\n    spread", MONEY),
    Mutant("everything that is sent counts", BUDGET, "return shard.bytes + shard.requests * MOST_TEMPLATE_TOKENS,", "return shard.tokens,",
           MONEY),
    Mutant("lost answers count as spent", BUDGET, "spent += _told_cost(rates, shard, batch) + lost", "spent += _told_cost(rates, shard, batch)",
           MONEY),
    Mutant("the price of the day it was sent counts", BUDGET, "if batch is not None and batch.rates is not None:", "if False:", MONEY),
    Mutant("long requests have their own price", "overnight/limits/prices.py", "one.above == 0 or size > one.above", "one.above == 0", MONEY),
    Mutant("n and best_of multiply", BUDGET, " * max(one for one in answers if isinstance(one, int))", "", MONEY),
    Mutant("the endpoint's own limit counts", BUDGET, "_LIMITS_BY_KIND.get(kind, _CHAT_LIMITS) if name in parameters",
           "TOKEN_LIMITS if name in parameters", MONEY),
    Mutant("a canary may fail as much as the job", "overnight/limits/canary.py", "if failed / sent > job.max_failed_fraction:",
           "if failed / sent >= job.max_failed_fraction:", MONEY),
    Mutant("a canary may fail no more", "overnight/limits/canary.py", "if failed / sent > job.max_failed_fraction:", "if False:", MONEY),
    Mutant("a canary may cost what was planned", "overnight/limits/canary.py", "    if cost > planned:\n", "    if cost >= planned:\n", MONEY),
    Mutant("a yes is good for its plan alone", "flows/approval.py", "    return plan.rows <= approved.rows and", "    return True or",
           "tests/test_pipeline.py -k yes_is_good"),
    # other forms of the Batch API, tables, fragments
    Mutant("a nameless batch at work is held", "overnight/providers/adoption.py", "if not proven and untold:", "if False:",
           "tests/test_anthropic.py -k may_be_ours"),
    Mutant("a nameless batch is ours by its results", "overnight/providers/adoption.py", "if firsts.get(one.id) in asked]", "]",
           "tests/test_anthropic.py -k 'may_be_ours or told_apart'"),
    Mutant("a machine that slept asks nothing in real time", "tasks/rescue.py", "if not self._run.ledger.holds(", "if not self._run or False and (",
           "tests/test_simulation.py -k broken"),
    Mutant("what is asked in real time is written down before", "tasks/rescue.py", "                journal.sent(custom_id)\n", "",
           "tests/test_rescue.py -k killed"),
    Mutant("what may be paid is not asked again", "overnight/answers/retry.py", "elif reply.error_code in MAYBE_PAID:", "elif reply.error_code == '':",
           "tests/test_rescue.py -k never_paid_twice"),
    Mutant("a batch is cancelled to be rescued where it keeps its answers", "overnight/limits/rescue.py", "or not job.profile.keeps_cancelled:", "or False:",
           "tests/test_rescue.py -k 'may_keep_nothing or is_kept'"),
    Mutant("a stream of results is counted", "overnight/providers/inline.py", "lambda: None, is_whole)", "lambda: None)",
           "tests/test_dialects.py -k 'anthropic and length'"),
    Mutant("an Iceberg commit that lost looks first", "overnight/answers/iceberg.py", '"commit.retry.num-retries"', '"nothing"',
           "tests/test_lakehouse.py -k iceberg_table_at_the_same"),
    Mutant("a fragment with a request to send is rendered", "overnight/builds/pieces.py", "drop_null().to_pylist())).all():",
           "drop_null().to_pylist())).all() and False:", "tests/test_fragments.py"),
    Mutant("a key in another form of header is echoed in no error", "overnight/providers/provider.py",
           "raise self._without_key(refusal(", "raise (refusal(", "tests/test_dialects.py -k echoes"),
    # keys and text
    Mutant("a job names variables for keys alone", "overnight/providers/keys.py", "    if owner is None:\n", "    if owner is None and name == '':\n", KEYS),
    Mutant("a provider's key goes to it alone", "overnight/providers/keys.py", "if profile.base_url and not _is_meant(", "if not name and not _is_meant(", KEYS),
    Mutant("a block's key goes where it says", "overnight/providers/keys.py", "    meant = f\"is for", "    return\n    meant = f\"is for", KEYS),
    Mutant("private addresses are not fetched", "overnight/providers/download.py", "if is_private(str(request.url)) and", "if False and", KEYS),
    Mutant("only some providers name addresses", "overnight/providers/provider.py", "if not self.profile.file_addresses:", "if False:", KEYS),
    Mutant("terminals get no orders", "overnight/text.py", "return _CONTROL.sub(_shown_control, str(text))", "return str(text)", KEYS),
    Mutant("files are for their owner", "overnight/store/files.py", "            part.chmod(0o600)", "            part.chmod(0o644)", KEYS),
]  # fmt: skip


def main() -> None:
    """Runs the mutants that are named, or all."""
    wanted = [one for one in MUTANTS if not sys.argv[1:] or any(word in one.name for word in sys.argv[1:])]
    survived: list[str] = []
    print("| protection | caught by |\n| --- | --- |")  # noqa: T201 - it is the output
    for mutant in wanted:
        caught = caught_by(mutant)
        print(f"| {mutant.name} | {caught or '**survives**'} |", flush=True)  # noqa: T201
        survived += [] if caught else [mutant.name]
    if survived:
        sys.exit(f"{len(survived)} of {len(wanted)} survive: {'; '.join(survived)}")


def caught_by(mutant: Mutant) -> str | None:
    """The first test that fails without the protection; None where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        for name in filter(None, listed):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        path = copy / mutant.file
        text = path.read_text()
        if mutant.old not in text:
            sys.exit(f"{mutant.name}: {mutant.file} does not have {mutant.old!r}")
        path.write_text(text.replace(mutant.old, mutant.new, 1))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
        quick = {**os.environ, "OVERNIGHT_NO_SHRINK": "1"}
        done = subprocess.run(command, cwd=copy, env=quick, capture_output=True, text=True, check=False, timeout=900)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    return failed[0].split(" - ")[0].split("::")[-1] if failed else None


if __name__ == "__main__":
    main()
