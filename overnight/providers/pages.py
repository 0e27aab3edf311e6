"""A listing read page by page, until it ends or shows that it never would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from overnight.errors import ProviderError, ProviderUnavailable
from overnight.providers.dialects.dialect import Dialect, Page
from overnight.providers.replies import RemoteBatch, RemoteFile

MAX_LIST_PAGES = 50
"""5,000 entries: some servers page without end, and a longer listing is reported as incomplete, never as empty."""
_PAGE = 100
"""OpenAI's largest page; AIBrix and others refuse more with a 400."""
_Entry = TypeVar("_Entry", RemoteBatch, RemoteFile)


def pages(
    dialect: Dialect,
    ask: Callable[[Page], dict[str, Any] | None],
    read: Callable[[Any], _Entry | None],
    what: str,
    *,
    complete: bool,
) -> Iterator[list[_Entry]]:
    """The entries of each page that no page before had.

    Stops when a page repeats what is known: servers that ignore `after` would be listed for ever.

    Args:
        dialect: how pages are asked for and read.
        ask: for a page; None where the reply is not one.
        read: an entry; None where it is not one.
        what: is listed.
        complete: whether conclusions are drawn from what is not there: each entry has to be read then, and a listing
            that does not say whether it goes on is asked for more.

    Raises:
        ProviderUnavailable: a page cannot be read, or a complete listing has no end: nothing may be concluded from it.
        ProviderError: another listing has no end.
    """
    seen: set[str] = set()
    after: str | None = None
    for number in range(MAX_LIST_PAGES):
        asked = Page(number, _PAGE, after)
        page = ask(asked)
        if page is None:
            raise ProviderUnavailable(f"the list of {what} cannot be read")
        entries = dialect.entries(page)
        found = [one for one in map(read, entries) if one is not None]
        if complete and len(found) < len(entries):
            raise ProviderUnavailable(f"the list of {what} has entries that cannot be read")
        fresh = [one for one in found if one.id not in seen]  # entries shift where one is made meanwhile
        if not fresh and (found or not dialect.token(page, "")):
            return
        yield fresh
        seen.update(one.id for one in fresh)
        more = dialect.has_more(page, asked)
        if more is False or (more is None and not complete):
            return
        after = dialect.token(page, found[-1].id if found else "")
    endless = ProviderUnavailable if complete else ProviderError
    raise endless(f"the list of {what} goes on after {MAX_LIST_PAGES} pages: it cannot be read whole")
