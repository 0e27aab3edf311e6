"""The dialects of Batch APIs: a file each, with what is said to a provider and how its replies are read."""

from __future__ import annotations

from overnight.job.profiles import Profile
from overnight.providers.dialects.anthropic import ANTHROPIC
from overnight.providers.dialects.dialect import Dialect
from overnight.providers.dialects.gemini import GEMINI
from overnight.providers.dialects.mistral import MISTRAL
from overnight.providers.dialects.openai import OPENAI
from overnight.providers.dialects.xai import XAI


def dialect_of(profile: Profile) -> Dialect:
    """The form of a profile's Batch API."""
    return {"openai": OPENAI, "mistral": MISTRAL, "anthropic": ANTHROPIC, "gemini": GEMINI, "xai": XAI}[profile.dialect]
