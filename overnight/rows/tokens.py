"""Token estimates, good enough to plan and to stay under a queue limit; the provider's counts are the truth.

OpenAI's o200k vocabulary makes 4.6 bytes a token of English and 4 to 5 of Chinese: 4 errs on the safe side.
"""

BYTES_PER_TOKEN = 4


MOST_TOKENS = 4 / 3
"""What an estimate is multiplied with where it must not be too low: dense text has three bytes a token."""

_REQUEST_TOKENS = 8
"""What a chat format adds to each request."""


def estimated_tokens(requests: int, prompt_bytes: int) -> int:
    """Input tokens of some requests whose prompts and schemas have so many bytes of text."""
    return -(-prompt_bytes // BYTES_PER_TOKEN) + requests * _REQUEST_TOKENS


def frame_bytes(requests: int, size: int, tokens: int) -> int:
    """The other way round: bytes of each line that an estimate took for no prompt."""
    return max(0, size - (tokens - requests * _REQUEST_TOKENS) * BYTES_PER_TOKEN) // max(1, requests)
