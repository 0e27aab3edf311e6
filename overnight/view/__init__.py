"""The page of a home's jobs: their rows, answers and charts, out of the Parquet files as they lie there.

rows       a page of a joined table: sorted, searched, filtered
charts     how statuses, answers, fields, lengths, tokens and costs are distributed
details    one row: what was sent, and every attempt with its raw reply
app        these as JSON, and the page that shows them; `serve` runs it
"""
