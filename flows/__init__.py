"""The sentences: one flow a file, and the command line in `__main__`.

Prefect's own server, which it starts where no `PREFECT_API_URL` is set, takes half a minute the first time on a small
machine: it is given the time, unless the person set another. Prefect's usage statistics are off unless somebody asks
for them. Arrow takes memory from the system, and gives it back: its own pool holds on to 60 MB more. What a home's
store asks for may stand in a block of Prefect, which is read once one is named.
"""

import logging
import os
import sys
from importlib import import_module

from overnight.store import objects

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "overnight")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # a lease also logs outside of runs
if "ipykernel" in sys.modules:  # a notebook shows a bar, and errors are raised: no log lines between its cells
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
if "prefect" in sys.modules:  # it read its settings when it was imported
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging(incremental=False)
objects.read_block = lambda name: import_module("tasks.credentials").home_secrets(name)
logging.getLogger("overnight").setLevel(logging.INFO)  # Prefect copies its handlers to extra loggers, not its level
