"""Webhooks: what OpenAI tells by itself of a batch that has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import openai

from overnight.errors import Unauthorized


class WebhookEvent(NamedTuple):
    """What OpenAI tells of a batch that has ended."""

    id: str
    """Of the delivery: the same for every try."""
    type: str
    batch_id: str


def read_webhook(body: bytes, headers: Mapping[str, str], secret: str) -> WebhookEvent | None:
    """Reads a webhook's delivery (https://platform.openai.com/docs/guides/webhooks); None: it is about no batch.

    Args:
        body: as it arrived.
        headers: in lower case.
        secret: what it is signed with (`whsec_…`).

    Raises:
        Unauthorized: the signature is missing, wrong, or older than five minutes.
    """
    with openai.OpenAI(api_key="none", webhook_secret=secret) as client:
        try:
            client.webhooks.verify_signature(body, headers, secret=secret)
            event: Any = json.loads(body)
        except (openai.InvalidWebhookSignatureError, ValueError, TypeError) as error:
            raise Unauthorized(f"this is no delivery that was signed with our secret: {error}") from None
    data = event.get("data") if isinstance(event, dict) else None
    kind = str(event.get("type")) if isinstance(event, dict) else ""
    if not kind.startswith("batch.") or not isinstance(data, dict) or not isinstance(data.get("id"), str):
        return None
    return WebhookEvent(str(headers.get("webhook-id") or event.get("id")), kind, data["id"])
