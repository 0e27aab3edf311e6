"""connect: the provider of a run, with its key from the environment or a Prefect block. Not a step: steps call it."""

from __future__ import annotations

from typing import Any

from prefect.blocks.system import Secret

from overnight.connect import connect
from overnight.errors import Unauthorized
from overnight.provider import Provider
from overnight.run import Run


def provider_of(run: Run) -> Provider:
    """Makes a run's provider; use it in a `with`.

    Raises:
        Unauthorized: there is no block of the name that the job gives, or no key in the environment.
        OvernightError: as `overnight.connect.connect` does.
    """
    if (name := run.job.provider.credentials) is None:
        return connect(run)
    try:
        block: Any = Secret.load(name)
    except ValueError:
        raise Unauthorized(
            f"Prefect has no Secret block named {name!r}: make one on its page, or with Secret(…).save"
        ) from None
    return connect(run, str(block.get()))
