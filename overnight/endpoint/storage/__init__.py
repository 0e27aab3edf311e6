"""What survives a kill: files on disk, batches and finished lines in SQLite, and the shapes of lines.

Uploads and finished lines come in; records and files go out. Uses `errors` and `settings`.
"""
