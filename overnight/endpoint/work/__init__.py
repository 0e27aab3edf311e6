"""The work: validates an input file, decides which line runs when, sends it until it is answered, writes result files.

Batches that are open come in; finished lines and ended batches go out. Uses `upstream` and `storage`.
"""
