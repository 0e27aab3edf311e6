"""Token estimates, good enough to plan and to stay under a queue limit; the provider's counts are the truth.

OpenAI's o200k vocabulary makes 4.6 bytes a token of English and 4 to 5 of Chinese: 4 errs on the safe side.
"""

BYTES_PER_TOKEN = 4
_DENSE_BYTES_PER_TOKEN = 3
"""Of code, JSON and tables."""
PLANNED_TOKENS = 4 / 3
"""What an estimate is multiplied with where the text may be dense."""
_REQUEST_TOKENS = 8
"""What a chat format adds to each request."""
MOST_TEMPLATE_TOKENS = 512
"""What a chat template adds to a request at the most: those of open models write a system prompt and rules for tools of
their own."""


def estimated_tokens(requests: int, prompt_bytes: int) -> int:
    """Input tokens of some requests whose prompts and schemas have so many bytes of text."""
    return -(-prompt_bytes // BYTES_PER_TOKEN) + requests * _REQUEST_TOKENS


def dense_tokens(requests: int, size: int) -> int:
    """Input tokens of some requests of so many bytes in all, each line as it is sent, where the text is dense."""
    return -(-size // _DENSE_BYTES_PER_TOKEN) + requests * _REQUEST_TOKENS


def frame_bytes(requests: int, size: int, tokens: int) -> int:
    """The other way round: bytes of each line that an estimate took for no prompt."""
    return max(0, size - (tokens - requests * _REQUEST_TOKENS) * BYTES_PER_TOKEN) // max(1, requests)
