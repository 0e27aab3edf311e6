"""What can be set on the server, and the checks that need no server to be running."""

import ipaddress
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from overnight.endpoint.off_peak import Schedule, read_schedule


class SettingsError(ValueError):
    """The server cannot start with these settings; the message says what to change."""


def package_version() -> str:
    """Return overnight's installed version, `0` in a checkout that was never installed."""
    try:
        return version("overnight")
    except PackageNotFoundError:
        return "0"


def _env(name: str) -> Parameter:
    return Parameter(env_var=f"OVERNIGHT_ENDPOINT_{name}", negative=())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of `overnight endpoint`; each has an environment variable that holds where the option is not given."""

    host: Annotated[str, _env("HOST")] = "127.0.0.1"
    """Address to listen on. Any address but a loopback one needs --client-key-env."""

    port: Annotated[int, _env("PORT")] = 8642
    """Port to listen on; 0 takes a free one, written to DATA/endpoint.json."""

    data: Annotated[Path, _env("DATA")] = Path("data/runs/.endpoint")
    """Directory of the files and of the database; one server at a time."""

    upstream: Annotated[str | None, _env("UPSTREAM")] = None
    """Base URL of the OpenAI-compatible real-time API that answers the lines; without it, the embedded model does."""

    key_env: Annotated[str | None, _env("KEY_ENV")] = None
    """Name of the environment variable that holds the upstream's API key."""

    concurrency: Annotated[int | None, _env("CONCURRENCY")] = None
    """Lines in flight at once, at most; without it, as many as the upstream bears (up to 256)."""

    rpm: Annotated[int | None, _env("RPM")] = None
    """Requests per minute to the upstream, at most."""

    tpm: Annotated[int | None, _env("TPM")] = None
    """Tokens per minute of the upstream, at most, counted from its answers."""

    client_key_env: Annotated[str | None, _env("CLIENT_KEY_ENV")] = None
    """Name of the environment variable that holds the key clients must send as a bearer token."""

    off_peak: Annotated[str | None, _env("OFF_PEAK")] = None
    """Work in cheap hours only, unless a batch would miss its window: 'deepseek', or hours such as
    'Mon-Fri 01:00-04:00,06:00-10:00; Sat 08:00-12:00 UTC peak' (or '… UTC off-peak')."""

    retention_days: Annotated[int, _env("RETENTION_DAYS")] = 30
    """Days after which files, and batches that have ended, are deleted; 0 keeps them."""

    max_open_batches: Annotated[int, _env("MAX_OPEN_BATCHES")] = 100
    """Batches that may be open at once; more are refused with 429 until one ends."""

    min_free_mb: Annotated[int, _env("MIN_FREE_MB")] = 512
    """Free space, in MiB, that stays on the disk: below it uploads and new batches get 507, and work rests."""

    log_json: Annotated[bool, _env("LOG_JSON")] = False
    """Log one JSON object per line."""

    exit_with_stdin: Annotated[bool, _env("EXIT_WITH_STDIN")] = False
    """Stop cleanly when standard input closes, so that the server ends with the process that started it."""

    grace_seconds: Annotated[float, _env("GRACE_SECONDS")] = 10.0
    """How long lines in flight may take to finish when the server stops, or a batch is cancelled or expires."""

    line_timeout_seconds: Annotated[float, _env("LINE_TIMEOUT_SECONDS")] = 600.0
    """How long one attempt at a line may take before it counts as a request_timeout."""


def secret(variable: str | None) -> str | None:
    """Return the secret that an environment variable holds; None where no variable is named.

    Raises:
        SettingsError: the variable is named but holds no usable key.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SettingsError(f"the environment variable {variable} is not set; export {variable}=<key> and start again")
    if not value.isascii() or not value.isprintable():
        # An HTTP library would refuse it with a message that shows it.
        raise SettingsError(f"the key in {variable} has characters that no HTTP header can carry")
    return value


def check(settings: Settings) -> None:
    """Refuse settings that would start a server nobody wants.

    Raises:
        SettingsError: with every option that is wrong, and its mend.
    """
    if problems := [*_upstream_problems(settings), *_number_problems(settings), *_outside_problems(settings)]:
        raise SettingsError("; ".join(problems))


def _upstream_problems(settings: Settings) -> Iterator[str]:
    if settings.upstream is not None:
        yield from _url_problems(settings.upstream)
    elif settings.key_env is not None:
        yield "--key-env is the upstream's key: give --upstream URL too"
    if settings.upstream is None and settings.off_peak is not None:
        yield "--off-peak is about the upstream's prices: give --upstream URL too"
    try:
        schedule(settings)
    except SettingsError as error:
        yield str(error)


def _number_problems(settings: Settings) -> Iterator[str]:
    for option in ("concurrency", "rpm", "tpm", "max_open_batches"):
        value = getattr(settings, option)
        if value is not None and value < 1:
            yield f"--{option.replace('_', '-')} {value} runs nothing: give 1 or more"
    for option in ("retention_days", "min_free_mb", "grace_seconds"):
        if not 0 <= getattr(settings, option) < math.inf:
            yield f"--{option.replace('_', '-')} {getattr(settings, option)} cannot be: give 0 or more"
    if not 0 < settings.line_timeout_seconds < math.inf:
        yield f"--line-timeout-seconds {settings.line_timeout_seconds} cannot be: give more than 0"
    if not 0 <= settings.port <= 65535:
        yield f"--port {settings.port} does not exist: give 0 to 65535"


def _outside_problems(settings: Settings) -> Iterator[str]:
    if settings.client_key_env is None and not is_loopback(settings.host):
        yield f"--host {settings.host} is reachable from outside: give --client-key-env NAME as well"


def schedule(settings: Settings) -> Schedule | None:
    """Read --off-peak; None where it is not given.

    Raises:
        SettingsError: it cannot be read.
    """
    if settings.off_peak is None:
        return None
    try:
        return read_schedule(settings.off_peak)
    except ValueError as error:
        raise SettingsError(f"--off-peak {error}") from error


def _url_problems(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port out of range
        usable = False
    if not usable:
        yield "--upstream must be a URL such as https://api.deepseek.com or http://127.0.0.1:11434/v1"
    elif parts.username or parts.password or parts.query:
        yield "--upstream must not carry a key: put it in the environment and name it with --key-env"


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
