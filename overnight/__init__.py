"""The nouns: what a batch run is made of, in rooms, in the order in which a row travels. Nothing here knows Prefect.

    errors, text   what can go wrong; figures, tables and names as people read them
    store          the home: folders, and files that are whole or absent
    job            what is asked: job file, profiles, schemas, templates, prompts
    rows           the dataset in, requests and tables out
    ledger         what was sent and paid: the one database, and the request files it knows
    limits         what may go out now: queue, budget, canary, prices, hours
    providers      who answers: the calls, and by what a lost one is known again
    answers        what came back: lines, verdicts, the judge of a batch's end, results, retries
    reports        what a person reads: plan, status, summary, report, diagnosis
    endpoint       the embedded Batch API server; shares no code with the rooms above

A room may use those above it in this list, never one below; import-linter keeps it so.
"""

import os

# Arrow's own pools keep what was freed: a hundred megabytes more at the same speed.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
