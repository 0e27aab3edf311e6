"""Everything that can go wrong, as one tree.

::

    OvernightError
    ├── Terminal                 a person has to act; the same call will fail again
    │   ├── JobError             the job file: YAML, unknown fields, wrong values, prices
    │   ├── DatasetError         the dataset: missing, empty, unreadable, duplicate keys
    │   ├── TemplateError        a prompt template: syntax, unknown column
    │   ├── InvalidRequests      a request that the provider would refuse
    │   ├── HomeError            the home: not writable, no way in, or used by another job
    │   ├── LedgerError          the ledger: unreadable, or a step it does not allow
    │   ├── Unreconciled         the verdicts do not add up to the rows sent
    │   ├── TooManyFailed        more rows have no answer than max_failed_fraction allows
    │   ├── SubmissionUnknown    the reply of a create was lost and the provider cannot be asked
    │   └── ProviderError        the provider says no
    │       ├── Unauthorized     401 or 403: the key
    │       ├── OtherAccount     the job's batches were sent with another account than the one that is named now
    │       ├── NoBatchApi       the address has no Batch API, or not for this endpoint
    │       └── NotFound         a batch or file that is not there (any more)
    └── Transient                the same call may work later
        ├── ProviderUnavailable  connection, timeout, 429, 5xx, a page of HTML
        ├── ReplyLost            a create that may or may not have made a batch
        ├── BatchHeld            a batch at work may be the one whose reply was lost
        ├── DownloadCut          fewer bytes arrived than announced, or a page
        ├── QueueFull            the provider takes no more tokens for now
        ├── FileNotThere         the provider does not find a file that was uploaded a moment ago
        ├── HomeUnavailable      the object store of the home is busy, or cannot be reached
        ├── LedgerUnavailable    the ledger's database is restarting, locked, or cannot be reached
        ├── LeaseLost            this process no longer holds the job
        └── JobBusy              another process is at work on the job

Code that retries asks for the type, never for the text. All of them survive pickling: a message and an optional list
of problems is all the state they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SHOWN_PROBLEMS = 20
MOST_PROBLEMS = 1000
"""Where the search for more problems ends: a file that is wrong throughout has one in each line."""


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    where: str
    """`file:line`, or the name of a field; empty when the message says it."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class OvernightError(Exception):
    """A failure with a message for the person who runs the job, and the list of what to mend."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        self.message = message
        self.problems = tuple(problems)
        super().__init__(message, self.problems)

    def __str__(self) -> str:
        shown = [f"\n  - {problem}" for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            shown.append(f"\n  - … and {more:,} more")
        return self.message + "".join(shown)

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show of it: the message says what to mend, and the frames do not."""
        return [f"{type(self).__name__}: {self}"]


class Terminal(OvernightError):
    """A person has to act; the same call will fail again."""


class JobError(Terminal):
    """The job cannot be read or does not make sense."""


class DatasetError(Terminal):
    """The dataset is missing, empty, unreadable, or its keys are not unique."""


class TemplateError(Terminal):
    """A prompt template has a syntax error or names a column that is not there."""


class InvalidRequests(Terminal):
    """Requests that the provider would refuse, found before anything was sent."""


class HomeError(Terminal):
    """The home is not writable or not to be entered, or belongs to another definition of the job."""


class LedgerError(Terminal):
    """The ledger cannot be read, or was asked for a step that its state machine does not have."""


class Unreconciled(Terminal):
    """The verdicts do not add up to the requests that were sent."""


class TooManyFailed(Terminal):
    """More rows have no answer than the job allows; all is joined, and the report says why."""


class SubmissionUnknown(Terminal):
    """A create call's reply was lost, and the provider cannot say whether a batch was made."""


class ProviderError(Terminal):
    """The provider refuses, for good."""


class Unauthorized(ProviderError):
    """The key is missing, wrong, or not allowed to do this."""


class OtherAccount(ProviderError):
    """The job's batches were sent with another account: what this one says of them proves nothing."""


class NoBatchApi(ProviderError):
    """The address has no Batch API, or none for the endpoint that the task needs."""


class NotFound(ProviderError):
    """The provider does not know this batch or file (any more)."""


class Transient(OvernightError):
    """The same call may work later."""


class ProviderUnavailable(Transient):
    """No usable answer: connection, timeout, 408, 409, 429, 5xx, or a page where JSON was due."""


class ReplyLost(Transient):
    """A create call ended without a clear answer: it may have made a batch."""


class BatchHeld(Transient):
    """A batch that is at work may be the one whose reply was lost: only its results will tell."""


class DownloadCut(Transient):
    """A file did not arrive: fewer bytes than announced, or a page in its place."""


class QueueFull(Transient):
    """The provider takes no more enqueued tokens or batches for now."""


class NotTaken(Transient):
    """A request in real time was turned away before it was looked at: it costs nothing, and may be sent again."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds
        """When the provider says that it takes it; None where it does not say."""


class Refused(ProviderError):
    """A request in real time was refused, be it alone or with every other: what becomes of others tells."""

    def __init__(self, message: str, line: bytes) -> None:
        super().__init__(message)
        self.line = line
        """Its line of a result file, where it was refused alone."""


class FileNotThere(Transient):
    """The provider does not find a file that was uploaded a moment ago (openai-dotnet#312)."""


class HomeUnavailable(Transient):
    """The object store that the home is on does not answer for now; what was put is whole."""


class LedgerUnavailable(Transient):
    """The ledger's database does not answer for now; nothing is known to be damaged."""


class LeaseLost(Transient):
    """This process no longer holds the job: it could not renew its lease in time."""


class JobBusy(Transient):
    """Another process is at work on the job."""
