"""What may go out now: the provider's token queue, the canary, the budget and its prices, cheap hours.

The ledger's rows come in; which shards go, which wait and why, and what they cost, goes out. Uses `ledger` and the
rooms it uses.
"""
