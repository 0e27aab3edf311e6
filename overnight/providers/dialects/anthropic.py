"""Anthropic's Message Batches: requests in the create call's own body, results as one stream of lines.

Sources: the types of anthropic 2.14.0 (`MessageBatch`, `MessageCreateParams`, `ErrorObject`) and
docs.claude.com/en/docs/build-with-claude/batch-processing; November 2026. A chat completion's body becomes a message's;
what cannot be said there is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import msgspec

from overnight.errors import JobError
from overnight.job.task import CHAT
from overnight.providers.dialects.dialect import Dialect, Order, Page, Question, seconds_of
from overnight.providers.replies import RemoteBatch, whole_number

MAX_TOKENS = 4096
"""Of an answer where the job sets no `max_tokens`, which a message has to have."""
_HOUR = {"type": "ephemeral", "ttl": "1h"}
"""Requests of a batch run within hours of each other, so that five minutes are seldom enough (the batch guide)."""
_SHORTEST = 1024
"""Bytes below which no text has the tokens that a cache takes."""
_AS_IT_IS = frozenset(
    {"model", "temperature", "top_p", "top_k", "thinking", "metadata", "cache_control", "output_config"}
)
_TRANSLATED = frozenset(
    {"messages", "max_tokens", "max_completion_tokens", "stop", "tools", "tool_choice", "parallel_tool_calls",
     "response_format", "reasoning_effort"}
)  # fmt: skip
_DATA = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)
_encode = msgspec.json.encode


def request(line: bytes) -> dict[str, Any]:
    """A line of a request file as one of a create call's `requests`.

    Raises:
        JobError: it asks for something that a message cannot.
    """
    asked = msgspec.json.decode(line)
    if asked["url"] != CHAT:
        raise JobError(f"anthropic has no batches for {asked['url']}")
    return {"custom_id": asked["custom_id"], "params": params_of(asked["body"])}


def params_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion's body as a message's parameters.

    Raises:
        JobError: names the first field that has no counterpart.
    """
    if unknown := sorted(body.keys() - _AS_IT_IS - _TRANSLATED):
        raise JobError(f"anthropic's messages have no {unknown[0]!r}: leave it out of parameters")
    found = {name: body[name] for name in sorted(_AS_IT_IS & body.keys())}
    found["max_tokens"] = body.get("max_tokens") or body.get("max_completion_tokens") or MAX_TOKENS
    found |= _conversation(body["messages"])
    if body.get("stop"):
        found["stop_sequences"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    if body.get("tools"):
        found["tools"] = [_tool(one) for one in body["tools"]]
    if (choice := _tool_choice(body)) is not None:
        found["tool_choice"] = choice
    output = dict(body.get("output_config") or {})
    output |= _format(body.get("response_format"))
    if body.get("reasoning_effort"):
        output["effort"] = body["reasoning_effort"]
    return found | ({"output_config": output} if output else {})


def _conversation(messages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The messages, with those of the system apart, as a message has it."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for one in messages:
        match one["role"]:
            case "system" | "developer":
                if turns:
                    raise JobError("anthropic's messages have their system text first, not between others")
                system += _system(one["content"])
            case "user":
                turns.append({"role": "user", "content": _content(one["content"])})
            case "assistant":
                turns.append({"role": "assistant", "content": _said(one)})
            case "tool":
                result = {
                    "type": "tool_result",
                    "tool_use_id": one["tool_call_id"],
                    "content": _content(one["content"]),
                }
                turns.append({"role": "user", "content": [result]})
            case other:
                raise JobError(f"anthropic's messages have no role {other!r}")
    return ({"system": system} if system else {}) | {"messages": turns}


def _system(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if any(part.get("type") != "text" for part in content):
        raise JobError("anthropic's system text takes no images or files")
    return [_block(part) for part in content]


def _content(content: Any) -> Any:
    return content if isinstance(content, str) else [_block(part) for part in content]


def _block(part: Mapping[str, Any]) -> dict[str, Any]:
    cached = {"cache_control": part["cache_control"]} if part.get("cache_control") else {}
    return _said_part(part) | cached


def _said_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": text}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": url}}:
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": {"file_data": data}}:
            return {"type": "document", "source": _source(data)}
        case _:
            raise JobError(f"anthropic's messages have no content of type {part.get('type')!r}")


def _source(address: str) -> dict[str, str]:
    """Where the bytes of an image or document are: in the request, or at an address."""
    if (data := _DATA.fullmatch(address)) is not None:
        return {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "url", "url": address}


def _said(message: Mapping[str, Any]) -> Any:
    calls = message.get("tool_calls") or []
    said = message.get("content")
    if not calls:
        return _content(said or "")
    blocks = [{"type": "text", "text": said}] if isinstance(said, str) and said else [_block(one) for one in said or ()]
    for call in calls:
        given = msgspec.json.decode(call["function"]["arguments"] or "{}")
        blocks.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": given})
    return blocks


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise JobError(f"anthropic's messages have no tool of type {tool.get('type')!r} of OpenAI's")
    function = tool["function"]
    found = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    return found | {name: function[name] for name in ("description", "strict") if function.get(name)}


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choice, alone = body.get("tool_choice"), body.get("parallel_tool_calls") is False
    match choice:
        case None if not alone:
            return None
        case None | "auto":
            found: dict[str, Any] = {"type": "auto"}
        case "required":
            found = {"type": "any"}
        case "none":
            return {"type": "none"}
        case {"function": {"name": name}}:
            found = {"type": "tool", "name": name}
        case _:
            raise JobError(f"anthropic's messages have no tool_choice {choice!r}")
    return found | ({"disable_parallel_tool_use": True} if alone else {})


def _format(asked: Any) -> dict[str, Any]:
    match asked:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"format": {"type": "json_schema", "schema": schema}}
        case _:
            raise JobError(f"anthropic's messages have no response_format of type {asked.get('type')!r}")


def _order(order: Order) -> Iterator[bytes]:
    """The requests themselves."""
    between = b'{"requests":['
    asked = (request(line) for line in order.lines)
    for one in _cached(asked) if order.caches_system else asked:
        yield between + _encode(one)
        between = b","
    yield b"]}" if between == b"," else b'{"requests":[]}'


def _cached(asked: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Requests whose system text is marked to be cached where a neighbour has the same: all read what one has written.

    What a job marks itself stays as it is. A text of fewer tokens than a cache takes, 1,024 for most models, is marked
    for nothing, and costs what it does without.
    """
    before: Any = None
    for one, after in pairwise(chain(asked, [None])):
        assert one is not None  # noqa: S101 - only the last of all is
        params = one["params"]
        system = params.get("system")
        shared = system and system in (before, after and after["params"].get("system"))
        before = system
        if shared and _is_long(system) and not _has_mark(params):
            params = params | {"system": [*system[:-1], system[-1] | {"cache_control": _HOUR}]}
        yield one | {"params": params}


def _has_mark(value: Any) -> bool:
    """Whether a job marks something of a request itself, at whatever depth."""
    if isinstance(value, dict):
        return "cache_control" in value or any(_has_mark(one) for one in value.values())
    return isinstance(value, list) and any(_has_mark(one) for one in value)


def _is_long(system: Sequence[Mapping[str, Any]]) -> bool:
    return sum(len(part["text"].encode()) for part in system) >= _SHORTEST


def _refused(line: bytes) -> str | None:
    try:
        request(line)
    except JobError as error:
        return error.message
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        return f"the body is no chat completion that can be said as a message ({type(error).__name__}: {error})"
    return None


def _read(reply: Any) -> RemoteBatch | None:
    if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
        return None
    counts = {name: whole_number(value) or 0 for name, value in (reply.get("request_counts") or {}).items()}
    return RemoteBatch(
        id=reply["id"],
        status=_status(reply, counts),
        output_file_id=reply["id"] if reply.get("results_url") else None,
        done=counts.get("succeeded"),
        failed=counts.get("errored"),
        total=sum(counts.values()) or None,
        created_at=seconds_of(reply.get("created_at")),
    )


def _status(reply: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """Its one word for an end, told apart: by whom it was ended, and whether some requests were too late."""
    match reply.get("processing_status"):
        case "in_progress":
            return "in_progress"
        case "canceling":
            return "cancelling"
        case "ended" if reply.get("cancel_initiated_at") and counts.get("canceled"):
            return "cancelled"
        case "ended":
            return "expired" if counts.get("expired") else "completed"
        case other:
            return str(other or "unknown").lower()


def _headers(key: str) -> dict[str, str]:
    return {"x-api-key": key, "anthropic-version": "2023-06-01"}


def _page(page: Page) -> dict[str, str | int]:
    return {"limit": page.size, "after_id": page.after} if page.after else {"limit": page.size}


def _has_more(reply: Mapping[str, Any], _page: Page) -> bool | None:
    told = reply.get("has_more")
    return told if isinstance(told, bool) else None


def _question(line: bytes) -> Question:
    return Question("/messages", request(line)["params"])


def _answer(custom_id: str, status: int, body: Any) -> dict[str, Any]:
    result = {"type": "succeeded", "message": body} if status == 200 else {"type": "errored", "error": body}
    return {"custom_id": custom_id, "result": result}


ANTHROPIC = Dialect(
    "/messages/batches", _order, _page, _read, _has_more,
    evidence="its results: its requests wait until a batch that may be theirs has ended",
    headers=_headers, refused=_refused, question=_question, answer=_answer,
)  # fmt: skip
