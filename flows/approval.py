"""Approval: a person is asked whether a run may cost what it may cost. Not a task: only a flow can pause.

A deployment's run is suspended, so that no worker is held while nobody looks; any other run pauses where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.names import in_deployment
from overnight.job.job import Job
from overnight.reports.plan import Plan
from overnight.text import artifact_key

_ANSWER_SECONDS = 7 * 86_400
"""A week: over a weekend and a holiday, and no longer than a plan stays true."""
_LOOK_SECONDS = 5


class Approval(RunInput):
    """The form that a person fills in."""

    decision: Literal["approve", "reject"] = Field(description="Whether the run goes on. There is no default: choose.")
    max_rows: int | None = Field(default=None, ge=1, description="Go on with the first rows only: how many.")
    note: str | None = Field(default=None, description="Why, for whoever reads the run later.")


def needs_approval(job: Job, plan: Plan) -> bool:
    """Whether a person has to be asked: what is to be sent may cost more than the job allows by itself."""
    limit = job.limits.approve_above_usd
    if limit is None or not plan.shards:
        return False
    return plan.cost_usd is None or plan.output_tokens is None or plan.cost_usd > limit


def covers(approved: Plan, plan: Plan) -> bool:
    """Whether a yes to one plan is a yes to another: no more rows, requests and bytes, and no more cost where known."""
    if approved.cost_usd is not None and plan.cost_usd is not None and plan.cost_usd > approved.cost_usd:
        return False
    return plan.rows <= approved.rows and plan.sending <= approved.sending and plan.bytes <= approved.bytes


Asker = Callable[[Plan], Approval]
_askers: list[Asker] = []


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """Has a person at hand asked, rather than one who looks at Prefect's page, while the block runs."""
    _askers.append(asker)
    try:
        yield
    finally:
        _askers.pop()


def ask_approval(plan: Plan) -> Approval:
    """Shows the plan and waits for the answer, a week at most.

    Raises:
        Exception: Prefect's own, for a deployment's run: it ends here, and starts anew with the answer.
    """
    if _askers:
        return _askers[-1](plan)
    figures = plan.text.split("\n## ", 1)[0]
    whole = f"The whole plan is the artifact `{artifact_key('plan', plan.job)}`."
    form = Approval.with_initial_data(description=f"{figures}\n\n{whole}")
    figures_of = repr((plan.requests, plan.bytes, plan.input_tokens, plan.output_tokens, plan.cost_usd))
    key = (
        f"approval-{hashlib.blake2b(figures_of.encode(), digest_size=8).hexdigest()}"  # an answer is good for its plan
    )
    if in_deployment():
        return suspend_flow_run(wait_for_input=form, timeout=_ANSWER_SECONDS, key=key)
    return pause_flow_run(wait_for_input=form, timeout=_ANSWER_SECONDS, poll_interval=_LOOK_SECONDS, key=key)
