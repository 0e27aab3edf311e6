"""Rows in, requests and tables out: datasets as streams of record batches, rows as request lines, the joined schema.

Files of a dataset come in; request lines with their custom_ids, and the layouts of the tables that people open, go out.
Uses `job` and `store`.
"""
