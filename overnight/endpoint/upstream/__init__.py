"""The real-time API that answers the lines: any over HTTP, or the embedded model behind the same protocol.

A request body goes in; an answer with its tokens, or why there is none, comes out. Uses `storage` and `settings`.
"""
