"""The HTTP API: OpenAI's Files and Batches, the upstream's real-time paths, health and metrics.

Requests of clients come in; documents in OpenAI's shapes go out. Uses `work`, `upstream` and `storage`.
"""
