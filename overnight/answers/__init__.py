"""What came back: result lines and bodies are read, each request gets a verdict, and one judge says how a batch ended.

A batch's files come in; Parquet parts with one row for every request, and what is to be asked again, go out. Uses
`providers`, `limits`, `ledger` and the rooms they use.
"""
