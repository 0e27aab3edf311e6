"""A Batch API for any model: a server with the OpenAI Files and Batches API over a real-time API.

`python -m overnight.endpoint` starts it over a small model inside this process; `--upstream URL` puts it before any
OpenAI-compatible real-time API. It is one process on one machine. It shares no code with the client side of overnight,
so that it can show the client's faults.

    settings     what can be set, and the checks that need no server
    validation   reads an input file and lists what is wrong with it (pure)
    records      files and batches, and the JSON that clients see of them (pure)
    lines        the shapes of input, output and error lines (pure)
    store        files on disk, batches and finished lines in SQLite
    upstream     the real-time API that answers the lines, and the retries
    model        the embedded model, as such an API
    runner       takes every open batch through its states
    finish       writes a batch's output and error files
    app          the HTTP API, with errors, upload and batch_request
    server       the process: lock, address, signals
"""
