"""What was sent and paid: the one database of jobs, shards and batch attempts, its lease, and its request files.

Requests come in and become shards with an attempt each; every state change is one transaction. Uses `rows`, `job` and
`store`.
"""
