"""How a flow run ends on Prefect's page: what went wrong in words, without frames, and Ctrl-C as a cancellation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect.states import Cancelled, Failed

from flows.names import INTERRUPTED, in_deployment
from overnight.errors import OvernightError, TooManyFailed
from overnight.reports.summary import Summary

P = ParamSpec("P")
R = TypeVar("R")


def ending_in_words(fn: Callable[P, R]) -> Callable[P, R]:
    """Has a flow's function end in a state with a message; who calls the flow gets the exception all the same.

    Ctrl-C is Prefect's `CancelledRun` there.
    """

    @wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except OvernightError as error:
            return cast(R, Failed(message=str(error), data=error.with_traceback(None)))
        except KeyboardInterrupt:
            return cast(R, Cancelled(message=INTERRUPTED))

    return run


def as_result(summary: Summary) -> Summary:
    """A summary as a flow returns it: a deployment's run fails where too many rows did, so that alerts see it.

    Raises:
        TooManyFailed: of a deployment's run.
    """
    if summary.within_bounds or not in_deployment():
        return summary
    raise TooManyFailed(summary.outcome)


class WithoutFrames(logging.Filter):
    """Log lines of Prefect about an error of ours say the error; its frames would hide what is to be mended."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewords such a line, and lets all pass."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, OvernightError):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(WithoutFrames())
