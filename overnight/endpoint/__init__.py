"""A Batch API for any model: a server with the OpenAI Files and Batches API over a real-time API.

`python -m overnight.endpoint` starts it over a small model inside this process; `--upstream URL` puts it before any
OpenAI-compatible real-time API. It is one process on one machine. It shares no code with the client side of overnight,
so that it can show the client's faults.

    off_peak, settings, errors   cheap hours; what can be set, checked without a server; what a client is refused
    storage    what survives a kill: files, batches and finished lines, and the shapes of lines
    upstream   the real-time API that answers, over HTTP or the embedded model
    work       every open batch through its states: which line runs when, and until it has an answer
    api        what clients see: routes, guard, uploads, documents, metrics
    server     the process: lock, address, signals

A room may use those above it in this list, never one below; import-linter keeps it so.
"""
