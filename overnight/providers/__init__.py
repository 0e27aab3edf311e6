"""Who answers: the Files and Batches calls, read with suspicion, and the evidence by which a lost call is known again.

Files and ids go in; what the provider says of files and batches, or an error of ours, comes out. Uses `limits`,
`ledger` and the rooms they use; alone knows openai.
"""
