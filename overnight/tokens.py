"""Token estimates, good enough to plan and to stay under a queue limit; the provider's counts are the truth.

OpenAI's o200k vocabulary makes 4.6 bytes a token of English and 4 to 5 of Chinese: 4 errs on the safe side.
"""

BYTES_PER_TOKEN = 4


def estimated_tokens(size: int) -> int:
    """Input tokens of requests of `size` bytes."""
    return -(-size // BYTES_PER_TOKEN)
