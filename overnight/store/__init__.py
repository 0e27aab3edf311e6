"""The home: where a job's files lie, and how they are written whole or not at all.

Bytes, text and record batches come in; files under their final names go out. Uses `errors` alone.
"""
