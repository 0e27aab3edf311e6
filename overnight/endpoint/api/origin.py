"""Requests that a page in a browser on this machine may have sent, and how they are told from a client's.

Without a key only loopback keeps strangers out, and a browser is on loopback too. A page whose name was pointed at
127.0.0.1 (DNS rebinding) sends that name as `Host`. A page that posts across sites sends its own as `Origin`, and need
not ask first where its body is not JSON (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
"""

import ipaddress
import re
from typing import Final

from starlette.datastructures import Headers

from overnight.endpoint.errors import ApiError
from overnight.endpoint.upstream.upstream import ENDPOINTS

JSON: Final = "application/json"
_JSON_PATHS: Final = frozenset({"/v1/batches", *ENDPOINTS})
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/?#\s]+))(?::[0-9]*)?")


def served_hosts(bound: str) -> frozenset[str]:
    """Return what a server that listens on a loopback address is called: the machine's own names, and the address."""
    return frozenset({"localhost", "127.0.0.1", "::1", _one_spelling(bound)})


def host_of(authority: str) -> str | None:
    """Return the host of `host`, `host:port` or `[address]:port` in one spelling; None where it is none of these."""
    match = _AUTHORITY.fullmatch(authority)
    return _one_spelling(match[1] or match[2]) if match else None


def _one_spelling(host: str) -> str:
    try:
        return ipaddress.ip_address(host).compressed  # an IPv6 address can be written in many ways
    except ValueError:
        return host.lower()


def check_page(headers: Headers, hosts: frozenset[str]) -> None:
    """Refuse what calls this server by another name than `hosts`, or comes from a page of another.

    Raises:
        ApiError: 403.
    """
    named, origins = headers.getlist("host"), headers.getlist("origin")
    if len(named) != 1 or host_of(named[0]) not in hosts:
        raise _refused(f"the Host {_shown(named)} is not one of", hosts, "host_not_allowed")
    if any(host_of(origin.partition("://")[2]) not in hosts for origin in origins):
        raise _refused(f"the Origin {_shown(origins)} is not a page of", hosts, "origin_not_allowed")


def _shown(values: list[str]) -> str:
    return repr(", ".join(values)[:100])


def _refused(what: str, hosts: frozenset[str], code: str) -> ApiError:
    names = ", ".join(sorted(f"[{host}]" if ":" in host else host for host in hosts))
    message = (
        f"Without a client key this server answers its own machine only, and {what} {names}. "
        "Use the address that it printed, or start it with --client-key-env NAME."
    )
    return ApiError(403, message, code=code)


def check_json(method: str, path: str, headers: Headers) -> None:
    """Refuse a body of another type where JSON is read; without a body there is nothing to refuse.

    Raises:
        ApiError: 415.
    """
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"
    if method != "POST" or path not in _JSON_PATHS or not has_body:
        return
    sent = headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != JSON:
        shown = f"'{sent[:100]}'" if sent else "none"
        message = f"The body must be JSON: send it as 'Content-Type: {JSON}'. The Content-Type of this one is {shown}."
        raise ApiError(415, message, code="unsupported_media_type")
