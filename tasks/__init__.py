"""The verbs, one step a file, in the order in which a run takes them.

build → validate → submit (upload, create) → wait → fetch → parse → join → report → clean

`plan` stands beside them, and `connect` is what steps that talk to the provider share.

In each file the pure functions come first and one thin `@task` last. Tasks hand each other folders, numbers and small
frozen values, never rows or clients.
"""
