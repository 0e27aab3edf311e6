"""A Batch API for any model: a server with the OpenAI Files and Batches API over a real-time API.

`python -m overnight.endpoint` starts it over a small model inside this process; `--upstream URL` puts it before any
OpenAI-compatible real-time API. It is one process on one machine. It shares no code with the client side of overnight,
so that it can show the client's faults.

    settings     what can be set, and the checks that need no server
    validation   reads an input file and lists what is wrong with it (pure)
    records      files and batches, and the JSON that clients see of them (pure)
    lines        the shapes of input, output and error lines (pure)
    store        files on disk, batches and finished lines in SQLite
    recorder     makes finished lines durable, many in one transaction
    upstream     the real-time API that answers the lines
    model        the embedded model, as such an API
    pace, quota, off_peak    how many lines run at once, how many per minute, and at which hours (pure)
    backlog      what is left to do, and whether it may be done at this hour
    gate         when the next line may run, and whose
    attempts     sends a line until it has an answer worth keeping
    order        lines that share a system prompt run next to each other
    runner       takes every open batch through its states
    finish       writes a batch's output and error files
    housekeeping watches the disk and deletes what is old
    app          the HTTP API, with service, realtime, guard, errors, upload, batch_request and documents
    metrics      what Prometheus is told
    server       the process: lock, address, signals
"""
