"""What is asked: a job file becomes a checked `Job`, and its task a compiled prompt and the kind of answer it wants.

YAML, profiles, schemas and templates come in; request bodies for rows, and what their answers look like, go out. Uses
`errors` and `text`.
"""
