"""A provider that misbehaves on order: the Files and Batches API over real HTTP, with every fault a test asks for.

    python -m tests.provider_server            # prints its address, serves until stdin closes

What is ordered is deterministic: a fault belongs to the next calls of its kind, a behaviour to the next batches
created. `POST /_order` takes orders, `GET /_books` tells what was called and what was billed per custom_id, each
request counting once for every time that a batch worked on it. `POST /_reset` opens a new account.

Requests are answered by their first user text: `[400]`, `[429]`, `[500]`, `[refuse]`, `[cut]` and `[garbage]` in it
make that answer; `[500 once]` only the first time. Else the answer is an echo, or, where the request has an enum
schema, one of its labels.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests import anthropic_words as anthropic
from tests import gemini_words as gemini
from tests import mistral_words as mistral
from tests import xai_words as xai

SETTINGS = {
    "key",             # that calls have to come with
    "queue_limit",     # tokens; refused where `queue_refusal` says: early (at the create call) or late
    "queue_refusal",
    "list_pages",      # False: no pages and no has_more (SiliconFlow); "bare": a bare list (Together)
    "echo_metadata",
    "envelope",        # replies stand in `data` (SiliconFlow) or `job` (Together)
    "times",           # numbers, iso (Together), objects (DigitalOcean), or none
    "links",           # "ids": file ids are URLs elsewhere (SiliconFlow); "redirects": content is (Parasail)
    "processing",      # looks at files that find them pending; no batch is made of such a file (Azure)
    "file_status",     # False: files have no status (DeepInfra)
    "prefix",          # of batch ids (Gemini)
    "written",         # tokens that a message with a mark writes to the cache of an hour (Anthropic)
    "template_tokens", # counted for each request besides its text, which is counted too then
}  # fmt: skip
FAULT = re.compile(r"\[(\d{3}|refuse|cut|garbage)( once)?\]")


@dataclass
class Behaviour:
    """How one batch goes."""

    polls: int = 0
    """Looks that find it in progress before it ends."""
    answer: int | None = None
    """Requests that are answered before it ends; None: all."""
    end: str = "completed"
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Batch-level errors; its `end` is then usually `failed`, and nothing is answered."""
    late_errors: list[dict[str, Any]] = field(default_factory=list)
    """Batch-level errors of a batch that answered something all the same."""
    error_text: Any = None
    """In place of the list object of errors: text (Novita) or a bare list (DigitalOcean)."""
    drop: list[int] = field(default_factory=list)
    """Positions of requests whose line is left out of the files, though it was billed."""
    twice: list[int] = field(default_factory=list)
    foreign: int = 0
    """Lines for requests that nobody sent."""
    torn: bool = False
    """The last line of the output file is cut in its middle."""
    null_output: bool = False
    """No output file, even where there are answers: all lines in the error file."""
    empty_error_file: bool = False
    both_files: bool = False
    """Names both files always, be they empty, and ends them without a newline (OGX)."""
    mixed: bool = False
    """Failed requests stand in the output file too (llm-d, vLLM)."""
    failed_too: list[int] = field(default_factory=list)
    """Positions of answered requests that have a line in the error file as well."""
    backwards: bool = False
    """Lines in the opposite order."""
    upper: bool = False
    """Statuses in capitals."""
    words: dict[str, str] = field(default_factory=dict)
    """Other words for statuses."""
    early_files: bool = False
    """Names an output file, of what is done so far, before it has ended (Doubleword, aibrix)."""
    vanish: int | None = None
    """Looks after which nobody knows the batch any more."""
    cancel: str = "cancelled"
    """How it ends when it is cancelled: cancelled, completed (DeepInfra), or never."""
    late_files: int = 0
    """Looks after its end at which it names no file yet."""
    counts: str = "right"
    """right, null, half (Azure), or wrong."""
    shape: str = "openai"
    """Of result lines: openai, string_body (OGX), bare (Nebius), short (Moonshot), type_only (OGX errors), code
    (DeepInfra errors), bodiless (vLLM errors)."""


@dataclass
class Fault:
    """What one kind of call suffers."""

    call: str
    times: int = 1
    status: int | None = None
    """HTTP status of the reply; None leaves it alone."""
    body: Any = None
    """Of the reply: JSON, or text for a page of HTML."""
    headers: dict[str, str] = field(default_factory=dict)
    effect: bool = False
    """Whether the call does its work before the faulty reply."""
    cut: str | None = None
    """`before` any byte of the reply, in its `middle`, `silent` there (without a length), or `short` (with its own)."""
    delay: float = 0.0
    """Seconds before the reply."""


class Provider:
    """The state of the account."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.polled: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.next_behaviours: list[Behaviour] = []
        self.default = Behaviour()
        self.calls: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()  # in real time, by the text of the last message
        self.key: str | None = None
        self.queue_limit: int | None = None
        self.queue_refusal = "late"
        self.list_pages: bool | str = True
        self.echo_metadata = True
        self.envelope = False
        self.times = "numbers"
        self.links: str | None = None
        self.processing = 0
        self.file_status = True
        self.prefix = ""
        self.template_tokens: int | None = None
        self.written = 0
        self.created: list[dict[str, Any]] = []
        self.keys_elsewhere: list[str] = []

    def order(self, order: dict[str, Any]) -> None:
        """Takes orders; each key replaces what was ordered before."""
        with self.lock:
            if order.get("forgive"):
                self.faults.clear()
            self.faults += [Fault(**fault) for fault in order.get("faults", ())]
            self.next_behaviours += [Behaviour(**one) for one in order.get("batches", ())]
            if "default" in order:
                self.default = Behaviour(**order["default"])
            for name in SETTINGS & order.keys():
                setattr(self, name, order[name])

    def books(self) -> dict[str, Any]:
        """What was called and billed."""
        with self.lock:
            batches = [{**batch, "lines": len(self._lines(batch))} for batch in self.batches.values()]
            return {"calls": dict(self.calls), "billed": dict(self.billed), "asked": dict(self.asked), "batches": batches,
                    "files": list(self.files), "faults_left": len(self.faults), "created": self.created,
                    "keys_elsewhere": self.keys_elsewhere}  # fmt: skip

    def fault_for(self, call: str) -> Fault | None:
        """The next fault of a kind of call, used up by this call."""
        with self.lock:
            self.calls[call] += 1
            found = next((fault for fault in self.faults if fault.call == call and fault.times > 0), None)
            if found is not None:
                found.times -= 1
                if not found.times:
                    self.faults.remove(found)
            return found

    def upload(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        """Keeps a file."""
        with self.lock:
            file_id = f"file-{len(self.contents) + 1:06d}"
            self.contents[file_id] = content
            self.files[file_id] = {
                "id": file_id, "object": "file", "bytes": len(content), "created_at": int(time.time()),
                "filename": name, "purpose": purpose, "status": "processed",
                "sample_type": "batch_request", "source": "upload",
            }  # fmt: skip
            return self.described(file_id) or {}

    def described(self, file_id: str) -> dict[str, Any] | None:
        """A file as this provider words it."""
        with self.lock:
            if (file := self.files.get(file_id)) is None:
                return None
            if not self.file_status:
                return {name: value for name, value in file.items() if name != "status"}
            if file["purpose"] == "batch" and self.processing > 0:
                self.processing -= 1
                return file | {"status": "pending"}
            return file

    def create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Makes a batch; what it will answer is billed as it works, on the first look at it."""
        with self.lock:
            batch_id = f"{self.prefix}batch_{len(self.batches) + 1:06d}"
            self.created.append(wanted)
            behaviour = self.next_behaviours.pop(0) if self.next_behaviours else self.default
            now = int(time.time())
            batch = {
                "id": batch_id, "object": "batch", "endpoint": wanted["endpoint"], "status": "validating",
                "input_file_id": wanted["input_file_id"], "completion_window": wanted["completion_window"],
                "created_at": now, "expires_at": now + 86400, "errors": None, "output_file_id": None,
                "error_file_id": None, "metadata": wanted.get("metadata") if self.echo_metadata else None,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
            }  # fmt: skip
            self.batches[batch_id] = batch
            self.behaviours[batch_id] = behaviour
            if self._over_queue(batch) and self.queue_refusal == "late":
                self._fail(batch, [{"code": "token_limit_exceeded", "message": self.queue_message(), "line": None}])
            return self.shown(batch)

    def queue_message(self) -> str:
        """OpenAI's words for a full queue."""
        return (
            f"Enqueued token limit reached for some-model in organization org-1. Limit: {self.queue_limit:,} enqueued "
            "tokens. Please try again once some in_progress batches have been completed."
        )

    def _tokens(self, batch: dict[str, Any]) -> int:
        return len(self.contents.get(batch["input_file_id"], b"")) // 4

    def _over_queue(self, new: dict[str, Any]) -> bool:
        if self.queue_limit is None:
            return False
        open_ones = [one for one in self.batches.values() if one["status"] in ("validating", "in_progress")]
        return (
            sum(self._tokens(one) for one in {one["id"]: one for one in [*open_ones, new]}.values()) > self.queue_limit
        )

    def would_overflow(self, wanted: dict[str, Any]) -> bool:
        """Whether a create call is to be refused at once."""
        with self.lock:
            return self.queue_refusal == "early" and self._over_queue({"id": "new", **wanted})

    def _fail(self, batch: dict[str, Any], errors: list[dict[str, Any]]) -> None:
        batch["status"] = "failed"
        batch["errors"] = {"object": "list", "data": errors}

    def _lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        content = self.contents.get(batch["input_file_id"], b"")
        return [json.loads(line) for line in content.splitlines() if line.strip()]

    def look(self, batch_id: str) -> dict[str, Any] | None:
        """One look at a batch; the look after its last poll ends it."""
        with self.lock:
            batch = self.batches.get(batch_id)
            if batch is None:
                return None
            behaviour = self.behaviours[batch_id]
            self.polled[batch_id] += 1
            if self._vanished(batch_id):
                return None
            if batch["status"] in ("validating", "in_progress"):
                batch["status"] = "in_progress"
                if behaviour.early_files and batch["output_file_id"] is None:
                    batch["output_file_id"] = self.upload("output.jsonl", b"{}\n", "batch_output")["id"]
                if self.polled[batch_id] > behaviour.polls:
                    self._end(batch, behaviour)
            elif batch["status"] == "cancelling" and behaviour.cancel == "completed":
                self._end(batch, Behaviour())
            elif batch["status"] == "cancelling" and behaviour.cancel == "cancelled":
                self._end(batch, Behaviour(answer=behaviour.answer or 0, end="cancelled"))
            return self.shown(batch)

    def _vanished(self, batch_id: str) -> bool:
        vanish = self.behaviours[batch_id].vanish
        return vanish is not None and self.polled[batch_id] > vanish

    def _end(self, batch: dict[str, Any], behaviour: Behaviour) -> None:
        if behaviour.errors or behaviour.error_text:
            self._fail(batch, behaviour.errors)
            batch["errors"] = behaviour.error_text or batch["errors"]
            return
        lines = self._lines(batch)
        answered = lines if behaviour.answer is None else lines[: behaviour.answer]
        output: list[dict[str, Any]] = []
        error: list[dict[str, Any]] = []
        for at, line in enumerate(answered):
            self.billed[line["custom_id"]] += 1
            self.tried[line["custom_id"]] += 1
            result = answer_line(line, self.tried[line["custom_id"]], behaviour.shape)
            if self.template_tokens is not None and behaviour.shape == "openai" and result["response"]:
                counted = len(json.dumps(line["body"])) // 4 + self.template_tokens
                result["response"]["body"].setdefault("usage", {})["prompt_tokens"] = counted
            if self.written and line["body"].get("cached"):
                result["response"]["body"]["usage"]["written"] = self.written
            status = (result.get("response") or {}).get("status_code", 200 if result.get("response") else 0)
            failed = not 200 <= status < 300 and not behaviour.mixed
            copies = 0 if at in behaviour.drop else 2 if at in behaviour.twice else 1
            (error if failed or behaviour.null_output else output).extend([result] * copies)
            if at in behaviour.failed_too:
                error.append(error_line(line["custom_id"], "server_error", behaviour.shape))
        unanswered = {"expired": "batch_expired", "cancelled": "batch_cancelled"}.get(behaviour.end)
        if unanswered:
            error += [error_line(line["custom_id"], unanswered, behaviour.shape) for line in lines[len(answered) :]]
        nobody = {"body": {"model": "m", "messages": []}}
        output += [answer_line({**nobody, "custom_id": f"foreign-{n}"}, 1, "openai") for n in range(behaviour.foreign)]
        if behaviour.backwards:
            output.reverse()
        text = b"".join(json.dumps(one).encode() + b"\n" for one in output)
        if behaviour.torn:
            text = text[: -len(text.splitlines()[-1]) // 2]
        if behaviour.both_files:
            text = text.rstrip(b"\n")
        if output or behaviour.both_files:
            batch["output_file_id"] = self.upload("output.jsonl", text, "batch_output")["id"]
        if error or behaviour.empty_error_file or behaviour.both_files:
            errors = b"".join(json.dumps(one).encode() + b"\n" for one in error)
            batch["error_file_id"] = self.upload("error.jsonl", errors, "batch_output")["id"]
        batch["status"] = behaviour.end
        if behaviour.late_errors:
            self._fail(batch, behaviour.late_errors)
        batch["request_counts"] = {"total": len(lines), "completed": len(output), "failed": len(error)}

    def shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as this provider words it."""
        behaviour = self.behaviours[batch["id"]]
        words = dict(batch)
        if words["status"] == behaviour.end and behaviour.late_files > 0:
            behaviour.late_files -= 1
            words["output_file_id"] = words["error_file_id"] = None
        words["status"] = behaviour.words.get(words["status"], words["status"])
        if self.times != "numbers":
            stamp = {"iso": "2026-11-25T10:00:00Z", "objects": {"seconds": 1}, "none": None}[self.times]
            words["created_at"] = words["expires_at"] = stamp
        if self.links == "ids":
            for name in ("output_file_id", "error_file_id"):
                words[name] = words[name] and f"{Handler.elsewhere}/_plain/{words[name]}"
        if behaviour.upper:
            words["status"] = words["status"].upper()
        if behaviour.counts == "null":
            words["request_counts"] = None
        elif behaviour.counts == "half":
            words["request_counts"] = {"total": 10, "completed": None, "failed": None}
        elif behaviour.counts == "wrong":
            words["request_counts"] = {"total": 1, "completed": 99, "failed": 7}
        return words

    def cancel(self, batch_id: str) -> dict[str, Any] | None:
        """Starts to cancel an open batch."""
        with self.lock:
            batch = self.batches.get(batch_id)
            if batch and batch["status"] in ("validating", "in_progress", "finalizing"):
                batch["status"] = "cancelling"
            return self.shown(batch) if batch else None

    def file_page(self, query: dict[str, str]) -> dict[str, Any]:
        """All files at once, or a numbered page of them (Mistral)."""
        with self.lock:
            every = list(self.files.values())
            if "page" not in query:
                return {"object": "list", "data": every}
            page, size = int(query["page"]), int(query["page_size"])
            return {"object": "list", "data": every[page * size : (page + 1) * size], "total": len(every)}

    def page(self, after: str | None, limit: int) -> Any:
        """Batches, newest first."""
        with self.lock:
            known = [batch for batch in self.batches.values() if not self._vanished(batch["id"])]
            listed = [self.shown(batch) for batch in reversed(known)]
            if self.list_pages == "bare":
                return listed
            if not self.list_pages:
                return {"object": "list", "data": listed}
            ids = [batch["id"] for batch in listed]
            start = ids.index(after) + 1 if after in ids else 0
            data = listed[start : start + limit]
            return {"object": "list", "data": data, "has_more": start + limit < len(listed)}


def answer_line(request: dict[str, Any], attempt: int, shape: str) -> dict[str, Any]:
    """The result line of one request."""
    body = request["body"]
    text = next((str(m["content"]) for m in body.get("messages") or [] if m.get("role") == "user"), "")
    order = FAULT.search(text)
    fault = order[1] if order and not (order[2] and attempt > 1) else None
    if fault == "000":
        return wrap(request["custom_id"], 0, {}, shape)
    if fault and fault.isdigit():
        status, code = (
            int(fault),
            "rate_limit_exceeded" if fault == "429" else "invalid_request" if fault[0] == "4" else "server_error",
        )
        return wrap(
            request["custom_id"], status, {"error": {"message": f"ordered {fault}", "type": code, "code": code}}, shape
        )
    if "input" in body:
        embedding = {"object": "embedding", "index": 0, "embedding": [float(len(body["input"])), 0.5]}
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        found = {"object": "list", "data": [embedding], "model": body.get("model"), "usage": usage}
        return wrap(request["custom_id"], 200, found, shape)
    message = {
        "role": "assistant",
        "content": said(body, text, fault),
        "refusal": "I will not" if fault == "refuse" else None,
    }
    finish = "length" if fault == "cut" else "stop"
    completion = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip
    return wrap(request["custom_id"], 200, completion, shape)


def said(body: dict[str, Any], text: str, fault: str | None) -> str | None:
    """The text of an answer."""
    if fault == "refuse":
        return None
    if fault == "garbage":
        return "not what was asked for"
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema") or {}
    for name, part in (schema.get("properties") or {}).items():
        if "enum" in part:
            return json.dumps({name: part["enum"][len(text) % len(part["enum"])]})
    return f"echo: {text}"


def wrap(custom_id: str, status: int, body: dict[str, Any], shape: str) -> dict[str, Any]:
    """A response in the line shape of a provider."""
    if shape == "no_usage":
        body = {name: value for name, value in body.items() if name != "usage"}
    if shape == "bare" and status == 200:
        return {"id": "r", "custom_id": custom_id, "response": body, "error": None}
    if shape == "short":
        return {"custom_id": custom_id, "response": {"status_code": status, "body": body}}
    if shape == "code" and status != 200:
        error = {"code": str(status), "message": "failed", "param": None, "type": None}
        return {"id": "r", "custom_id": custom_id, "response": None, "error": error}
    if shape == "bodiless" and status != 200:
        response = {"status_code": status, "request_id": "r", "body": None}
        return {"id": "r", "custom_id": custom_id, "response": response, "error": "failed"}
    if shape == "type_only" and status != 200:
        return {"id": "r", "custom_id": custom_id, "error": {"type": "server_error", "message": "failed"}}
    sent: Any = json.dumps(body) if shape == "string_body" else body
    response = {"status_code": status, "request_id": "req_1", "body": sent}
    return {"id": "r", "custom_id": custom_id, "response": response, "error": None}


def error_line(custom_id: str, code: str, shape: str) -> dict[str, Any]:
    """A line for a request that was not worked on."""
    line: dict[str, Any] = {
        "id": "r",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": code},
    }
    if shape == "type_only":
        del line["response"]
    return line


class Handler(BaseHTTPRequestHandler):
    """One request over HTTP."""

    protocol_version = "HTTP/1.1"
    current: Provider
    elsewhere = ""
    """The address of the second port: another host, as far as keys are concerned."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Says nothing."""

    def do_GET(self) -> None:
        """Reads."""
        self._serve()

    def do_POST(self) -> None:
        """Writes."""
        self._serve()

    def do_DELETE(self) -> None:
        """Deletes."""
        self._serve()

    def _serve(self) -> None:
        self.provider = Handler.current  # one account from a request's start to its end
        self._content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = url.path.removeprefix("/xai").removeprefix("/v1")
        if path == "/_reset":
            Handler.current = Provider()
            return self._reply(200, {})
        if path == "/_order":
            self.provider.order(json.loads(self._content))
            return self._reply(200, {})
        if path == "/_books":
            return self._reply(200, self.provider.books())
        if path.startswith("/_plain/"):
            self.provider.keys_elsewhere += [key] if (key := self.headers.get("Authorization")) else []
            return self._download(path.removeprefix("/_plain/"), None)
        key = (
            self.headers.get("x-goog-api-key")
            or self.headers.get("x-api-key")
            or (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        )
        both = bool({"x-api-key", "x-goog-api-key"} & {name.lower() for name in self.headers}) and (
            "Authorization" in self.headers
        )
        if both or (self.provider.key and key != self.provider.key and "upload_id" not in query):
            return self._reply(401, error_body("Incorrect API key provided", "invalid_api_key"))
        asked = path.endswith(("/completions", "/messages"))
        if self.path.startswith("/xai/v1/batches"):
            call, effect = self._route_xai(path.split("/")[2:], query)
        else:
            call, effect = ("ask", self._ask) if asked else self._route(path, query)
        fault = self.provider.fault_for(call)
        if fault is None:
            return effect(None)
        time.sleep(fault.delay)
        if fault.effect:
            return effect(fault)
        return self._faulty(fault, None)

    def _route(self, path: str, query: dict[str, str]) -> tuple[str, Callable[[Fault | None], None]]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        provider = self.provider
        if "x-goog-api-key" in self.headers or parts[0] == "upload":
            return self._route_gemini(parts, query)
        if parts == ["files"] and self.command == "POST":
            return "upload", self._upload
        if parts == ["files"]:
            return "files", lambda fault: self._answer(fault, provider.file_page(query))
        if parts[0] == "files" and self.command == "GET" and parts[-1] != "content":
            return "file", lambda fault: self._answer(fault, provider.described(parts[1]))
        if parts[0] == "files" and parts[-1] == "content":
            return "content", lambda fault: self._download(parts[1], fault)
        if parts[0] == "files" and self.command == "DELETE":
            return "delete", lambda fault: self._delete(parts[1], fault)
        if parts[:2] == ["messages", "batches"]:
            return self._route_messages(parts[2:], query)
        if parts[:2] == ["batch", "jobs"]:
            return self._route_jobs(parts[2:], query)
        if parts == ["batches"] and self.command == "POST":
            return "create", self._create
        if parts == ["batches"]:
            return "list", lambda fault: self._answer(
                fault, provider.page(query.get("after"), int(query.get("limit", 20)))
            )
        if parts[0] == "batches" and parts[-1] == "cancel":
            return "cancel", lambda fault: self._answer(fault, provider.cancel(parts[1]))
        if parts[0] == "batches":
            return "retrieve", lambda fault: self._answer(fault, provider.look(parts[1]))
        return "unknown", lambda fault: self._answer(fault, None)

    def _route_jobs(self, parts: list[str], query: dict[str, str]) -> tuple[str, Callable[[Fault | None], None]]:
        """Mistral's calls: the same batches, in its words."""
        provider = self.provider
        if not parts and self.command == "POST":
            self._content = json.dumps(mistral.order(json.loads(self._content))).encode()
            return "create", lambda fault: self._create(fault, mistral.job)
        if not parts:
            page, size = int(query.get("page", 0)), int(query.get("page_size", 100))
            return "list", lambda fault: self._answer(fault, mistral.page(provider.page(None, 1 << 20), page, size))
        if parts[-1] == "cancel":
            return "cancel", lambda fault: self._answer(fault, mistral.job(provider.cancel(parts[0])))
        return "retrieve", lambda fault: self._answer(fault, mistral.job(provider.look(parts[0])))

    def _route_messages(self, parts: list[str], query: dict[str, str]) -> tuple[str, Callable[[Fault | None], None]]:
        """Anthropic's calls: the requests come with the create call, and results are a stream."""
        provider = self.provider
        if not parts and self.command == "POST":
            return "create", self._create_messages
        if not parts:
            listed = provider.page(query.get("after_id"), int(query.get("limit", 20)))
            told = {"has_more": listed["has_more"], "data": [self._message_batch(one) for one in listed["data"]]}
            ends = {"first_id": told["data"][0]["id"], "last_id": told["data"][-1]["id"]} if told["data"] else {}
            return "list", lambda fault: self._answer(fault, told | ends)
        if parts[-1] == "cancel":
            return "cancel", lambda fault: self._answer(fault, self._message_batch(provider.cancel(parts[0])))
        if parts[-1] == "results":
            return "content", lambda fault: self._results(parts[0], fault)
        return "retrieve", lambda fault: self._answer(fault, self._message_batch(provider.look(parts[0])))

    def _route_gemini(self, parts: list[str], query: dict[str, str]) -> tuple[str, Callable[[Fault | None], None]]:
        """Gemini's calls: uploads in two steps, names as paths, verbs behind a colon."""
        provider, name, _, verb = self.provider, *parts[-1].partition(":")
        size, token = int(query.get("pageSize", 50)), query.get("pageToken")
        if parts[0] == "upload" and "upload_id" not in query:
            about = json.loads(self._content)["file"]
            name = about.get("displayName") or about.get("display_name")
            address = f"http://{self.headers['Host']}{self.path}?upload_id={name}"
            return "begin upload", lambda _: self._send(200, b"{}", {"X-Goog-Upload-URL": address})
        if parts[0] == "upload":
            return "upload", lambda fault: self._upload_gemini(query["upload_id"], fault)
        if parts == ["files"]:
            files = [gemini.described(file) for file in provider.files.values()]
            return "files", lambda fault: self._answer(fault, gemini.page("files", files, size, token))
        if parts[0] == "files" and verb == "download":
            return "content", lambda fault: self._download(self._one_file(name), fault, gemini.results)
        if parts[0] == "files" and self.command == "DELETE":
            return "delete", lambda fault: self._delete(name, fault)
        if parts[0] == "files":
            return "file", lambda fault: self._answer(fault, gemini.described(provider.described(name)))
        if verb in ("batchGenerateContent", "asyncBatchEmbedContent"):
            wanted = gemini.order(json.loads(self._content), name)
            if verb == "asyncBatchEmbedContent" and (content := provider.contents.get(wanted["input_file_id"])):
                provider.contents[wanted["input_file_id"]] = gemini.lines(content)
            self._content = json.dumps(wanted).encode()
            return "create", lambda fault: self._create(fault, gemini.operation)
        if parts == ["batches"]:
            batches = [gemini.operation(batch) for batch in provider.page(None, 1 << 20)["data"]]
            return "list", lambda fault: self._answer(fault, gemini.page("operations", batches, size, token))
        if verb == "cancel":
            return "cancel", lambda fault: self._answer(fault, gemini.operation(provider.cancel(name)))
        return "retrieve", lambda fault: self._answer(fault, gemini.operation(provider.look(name)))

    def _route_xai(self, parts: list[str], query: dict[str, str]) -> tuple[str, Callable[[Fault | None], None]]:
        """xAI's calls: verbs behind a colon, results in pages."""
        provider, size, token = self.provider, int(query.get("limit", 20)), query.get("pagination_token")
        if not parts and self.command == "POST":
            self._content = json.dumps(xai.order(json.loads(self._content))).encode()
            return "create", lambda fault: self._create(fault, self._xai_batch)
        if not parts:
            batches = [self._xai_batch(batch) for batch in provider.page(None, 1 << 20)["data"]]
            return "list", lambda fault: self._answer(fault, xai.page("batches", batches, size, token))
        name, _, verb = parts[0].partition(":")
        if verb == "cancel":
            return "cancel", lambda fault: self._answer(fault, self._xai_batch(provider.cancel(name)))
        if parts[-1] == "results":
            batch = provider.batches.get(name)
            found = xai.page("results", self._xai_results(batch), size, token) if batch else None
            return "content", lambda fault: self._answer(fault, found)
        return "retrieve", lambda fault: self._answer(fault, self._xai_batch(provider.look(name)))

    def _xai_batch(self, batch: dict[str, Any] | None) -> dict[str, Any] | None:
        known = self.provider._lines(batch) if batch else []
        return xai.batch(batch, len(known), self._xai_results(batch) if batch else [])

    def _xai_results(self, batch: dict[str, Any]) -> list[Any]:
        names = ("output_file_id", "error_file_id")
        return xai.results(b"".join(self.provider.contents.get(str(batch[name]), b"") for name in names))

    def _one_file(self, name: str) -> str:
        """The id of a batch's one result file, made of the two that others have."""
        provider = self.provider
        if (batch := provider.batches.get(name.removeprefix("results-"))) is None:
            return name
        provider.contents[name] = b"".join(
            provider.contents.get(str(batch[file]), b"") for file in ("output_file_id", "error_file_id")
        )
        return name

    def _upload_gemini(self, name: str, fault: Fault | None) -> None:
        assert self.headers["X-Goog-Upload-Command"] == "upload, finalize"
        file = gemini.described(self.provider.upload(name, self._content, "batch"))
        if fault is not None:
            return self._faulty(fault, json.dumps({"file": file}).encode())
        return self._send(200, json.dumps({"file": file}).encode(), {"X-Goog-Upload-Status": "final"})

    def _create_messages(self, fault: Fault | None) -> None:
        content = anthropic.lines(json.loads(self._content))
        file = self.provider.upload("requests.jsonl", content, "batch")
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        self._answer(fault, self._message_batch(self.provider.create(wanted)))

    def _message_batch(self, batch: dict[str, Any] | None) -> dict[str, Any] | None:
        if batch is None:
            return None
        requests = len(self.provider._lines(batch))
        return anthropic.batch(batch, requests, self._message_results(batch), f"http://{self.headers['Host']}/v1")

    def _message_results(self, batch: dict[str, Any]) -> bytes:
        names = ("output_file_id", "error_file_id")
        return anthropic.results(*(self.provider.contents.get(str(batch[name]), b"") for name in names))

    def _results(self, batch_id: str, fault: Fault | None) -> None:
        batch = self.provider.batches.get(batch_id)
        if batch is None or (fault is not None and fault.status == 404):
            return self._reply(404, error_body("not found", "not_found_error"))
        if fault is not None:
            return self._faulty(fault, self._message_results(batch))
        return self._send(200, self._message_results(batch), {"Content-Type": "application/x-jsonl"})

    def _ask(self, fault: Fault | None) -> None:
        """A request in real time, which is billed whatever becomes of the reply; Anthropic has words of its own."""
        body, in_words = json.loads(self._content), urlsplit(self.path).path.endswith("/messages")
        if in_words:
            body = json.loads(anthropic.lines({"requests": [{"custom_id": "", "params": body}]}))["body"]
        with self.provider.lock:
            text = str(body["messages"][-1]["content"])
            self.provider.asked[text] += 1
            told = answer_line({"custom_id": "", "body": body}, self.provider.asked[text], "openai")["response"]
        if told["status_code"] == 200:
            return self._answer(fault, anthropic.message(told["body"]) if in_words else told["body"])
        return self._reply(told["status_code"], told["body"])

    def _upload(self, fault: Fault | None) -> None:
        boundary = (self.headers.get_boundary() or "").encode()
        purpose, name, content = "batch", "file.jsonl", b""
        for part in self._content.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            if b'name="purpose"' in head:
                purpose = value.strip().decode()
            elif found := re.search(rb'filename="([^"]*)"', head):
                name, content = found[1].decode(), value.removesuffix(b"\r\n")
        self._answer(fault, self._enveloped(self.provider.upload(name, content, purpose), "data"))

    def _enveloped(self, reply: Any, envelope: str) -> Any:
        return {"code": 20000, "status": True, envelope: reply} if self.provider.envelope else reply

    def _create(self, fault: Fault | None, worded: Callable[[Any], Any] = lambda batch: batch) -> None:
        wanted = json.loads(self._content)
        if wanted["input_file_id"] not in self.provider.contents:
            return self._reply(400, error_body(f"Cannot find file {wanted['input_file_id']}", "invalid_request"))
        if self.provider.would_overflow(wanted):
            return self._reply(429, error_body(self.provider.queue_message(), "token_limit_exceeded"))
        if self.provider.processing > 0:
            message = f"The file {wanted['input_file_id']} has not been processed yet"
            return self._reply(400, error_body(message, "invalid_request"))
        return self._answer(fault, self._enveloped(worded(self.provider.create(wanted)), "job"))

    def _download(
        self, file_id: str, fault: Fault | None, worded: Callable[[bytes], bytes] = lambda content: content
    ) -> None:
        content = self.provider.contents.get(file_id)
        if content is None:
            return self._reply(404, error_body("No such File object", "not_found"))
        content = worded(content)
        if fault is not None:
            return self._faulty(fault, content)
        if self.provider.links == "redirects" and "/_plain/" not in self.path:
            return self._send(302, b"", {"Location": f"{Handler.elsewhere}/_plain/{file_id}"})
        return self._send(200, content, {"Content-Type": "application/octet-stream"})

    def _delete(self, file_id: str, fault: Fault | None) -> None:
        with self.provider.lock:
            known = self.provider.files.pop(file_id, None)
            self.provider.contents.pop(file_id, None)
        self._answer(fault, {"id": file_id, "object": "file", "deleted": True} if known else None)

    def _answer(self, fault: Fault | None, reply: Any) -> None:
        if fault is not None:
            return self._faulty(fault, json.dumps(reply).encode())
        if reply is None:
            return self._reply(404, error_body("not found", "not_found"))
        return self._reply(200, reply)

    def _faulty(self, fault: Fault, content: bytes | None) -> None:
        if fault.cut == "before":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        body = content if fault.body is None and content is not None else b""
        if fault.body is not None:
            body = fault.body.encode() if isinstance(fault.body, str) else json.dumps(fault.body).encode()
        kind = "text/html" if isinstance(fault.body, str) else "application/json"
        if fault.cut == "middle":
            self._start(fault.status or 200, {"Content-Type": kind, "Content-Length": str(len(body)), **fault.headers})
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if fault.cut == "short":  # whole as far as HTTP can tell
            body = body[: len(body) // 2]
        if fault.cut == "silent":  # the end of the connection is the end of the body, wherever it comes
            self.close_connection = True
            self._start(fault.status or 200, {"Content-Type": kind, "Connection": "close", **fault.headers})
            self.wfile.write(body[: len(body) // 2])
            return None
        return self._send(fault.status or 200, body, {"Content-Type": kind, **fault.headers})

    def _reply(self, status: int, reply: Any) -> None:
        self._send(status, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._start(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves on, whatever its clients do."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that were killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def error_body(message: str, code: str) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


def main() -> None:
    """Serves until stdin closes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=0)
    Handler.current = Provider()
    server = Server(("127.0.0.1", options.parse_args().port), Handler)
    second = Server(("127.0.0.1", 0), Handler)
    Handler.elsewhere = f"http://127.0.0.1:{second.server_port}"
    for one in (server, second):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)  # noqa: T201 - how tests learn the address
    sys.stdin.read()


if __name__ == "__main__":
    main()
