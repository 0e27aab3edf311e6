"""Automations as code: made on the Prefect server, or brought up to date there.

    python -m deployments.automations                            # a cancelled run cancels its batches
    python -m deployments.automations --downstream FLOW/NAME     # and a job that is done starts another deployment

A flow that is killed cannot cancel its batches itself, and Prefect's cancellation hooks run in no suspended run: the
event of the cancellation does, wherever it came from.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from cyclopts import App, Parameter
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

CANCELLED = "overnight: a cancelled run cancels its batches"
DOWNSTREAM = "overnight: a finished job starts {}"
SENDERS = ("run_batch", "submit_batch")
"""Flows whose runs have batches to cancel, in whatever deployment."""

app = App(name="python -m deployments.automations", help="Make overnight's automations on the Prefect server.")


@app.default
def main(
    downstream: Annotated[
        str | None, Parameter(help="FLOW/NAME of a deployment to start with `job` and `joined` when a job is done.")
    ] = None,
) -> None:
    """Makes the automations, or brings them up to date."""
    put(cancel_automation())
    if downstream:
        put(downstream_automation(downstream))


def cancel_automation() -> Automation:
    """Runs `cancel_batch` with the job of a run of `SENDERS` that was cancelled.

    Prefect cancels runs by itself too (`collision_strategy: CANCEL_NEW`), which held nothing: `cancel_batch` looks at
    what the run was, and leaves the job alone then.
    """
    return _on_event(
        CANCELLED,
        "prefect.flow-run.Cancelled",
        {"prefect.resource.role": "flow", "prefect.resource.name": list(SENDERS)},
        RunDeployment(
            deployment_id=deployment_id("cancel_batch/cancel"),
            parameters={
                **{name: _parameter_of_the_run(name) for name in ("job", "home")},
                "cancelled_run": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"},
            },
        ),
    )


def _parameter_of_the_run(name: str) -> dict[str, Any]:
    """A template for a parameter of the run that an event is about; null where it has none."""
    template = {"__prefect_kind": "jinja", "template": f"{{{{ flow_run.parameters.get('{name}') | tojson }}}}"}
    return {"__prefect_kind": "json", "value": template}


def downstream_automation(deployment: str) -> Automation:
    """Runs a deployment with `job` and the path of the joined table when a job is done within its bounds."""
    fields = {
        name: {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{name} }}}}"} for name in ("job", "joined")
    }
    action = RunDeployment(deployment_id=deployment_id(deployment), parameters=fields)
    return _on_event(DOWNSTREAM.format(deployment), "overnight.job.completed", {}, action)


def _on_event(name: str, event: str, related: dict[str, Any], action: RunDeployment) -> Automation:
    trigger = EventTrigger(
        expect={event},
        match_related=ResourceSpecification.model_validate(related),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return Automation(name=name, description=f"On {event}.", trigger=trigger, actions=[action])


def put(automation: Automation) -> None:
    """Makes an automation, in place of one of its name."""
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
    automation.create()
    print(f"automation: {automation.name}")  # noqa: T201 - it is the output


def deployment_id(name: str) -> UUID:
    """Finds a deployment.

    Raises:
        SystemExit: it is not there.
    """
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(name).id
        except ObjectNotFound:
            raise SystemExit(f"there is no deployment {name}: deploy first (docs/operations.md)") from None


if __name__ == "__main__":
    app()
