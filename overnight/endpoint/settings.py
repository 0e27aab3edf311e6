"""What can be set on the server, and the checks that need no server to be running."""

import ipaddress
import os
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

DATA_VARIABLE: Final = "OVERNIGHT_ENDPOINT_DATA"


class SettingsError(ValueError):
    """The server cannot start with these settings; the message says what to change."""


def default_data() -> Path:
    """Return the data directory named in the environment, else `data/runs/.endpoint`."""
    return Path(os.environ.get(DATA_VARIABLE) or "data/runs/.endpoint")


def package_version() -> str:
    """Return overnight's installed version, `0` in a checkout that was never installed."""
    try:
        return version("overnight")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of `overnight endpoint`."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but a loopback one needs --client-key-env."""

    port: int = 8642
    """Port to listen on; 0 takes a free one, written to DATA/endpoint.json."""

    data: Path = field(default_factory=default_data)
    """Directory of the files and of the database; one server at a time."""

    upstream: str | None = None
    """Base URL of the OpenAI-compatible real-time API that answers the lines; without it, the embedded model does."""

    key_env: str | None = None
    """Name of the environment variable that holds the upstream's API key."""

    concurrency: int | None = None
    """Lines in flight at once: 8 without this."""

    client_key_env: str | None = None
    """Name of the environment variable that holds the key clients must send as a bearer token."""

    exit_with_stdin: bool = False
    """Stop cleanly when standard input closes, so that the server ends with the process that started it."""

    grace_seconds: float = 10.0
    """How long lines in flight may take to finish when the server stops, or a batch is cancelled or expires."""

    line_timeout_seconds: float = 600.0
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
        SettingsError: with the option and the mend.
    """
    if settings.upstream is not None:
        _check_upstream(settings.upstream)
    elif settings.key_env is not None:
        raise SettingsError("--key-env is the upstream's key: give --upstream URL too")
    if settings.concurrency is not None and settings.concurrency < 1:
        raise SettingsError(f"--concurrency {settings.concurrency} runs nothing: give 1 or more")
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"--port {settings.port} does not exist: give 0 to 65535")
    if settings.client_key_env is None and not _is_loopback(settings.host):
        raise SettingsError(f"--host {settings.host} is reachable from outside: give --client-key-env NAME as well")


def _check_upstream(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError("--upstream must be a URL such as https://api.deepseek.com or http://127.0.0.1:11434/v1")
    if parts.username or parts.password or parts.query:
        raise SettingsError("--upstream must not carry a key: put it in the environment and name it with --key-env")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
