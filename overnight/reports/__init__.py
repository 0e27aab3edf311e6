"""What a person reads: the plan before, the status meanwhile, summary, report and diagnosis afterwards.

Figures and the ledger's rows come in; Markdown, charts and small records go out. Uses every other room.
"""
