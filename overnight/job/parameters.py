"""What a job's `parameters` may say beside what its task does: known names, misspelt ones, clashes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from overnight.errors import JobError
from overnight.job.task import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES

_SHARED = """frequency_penalty logprobs metadata min_p presence_penalty prompt_cache_key prompt_cache_retention
    repetition_penalty safety_identifier seed service_tier stop store temperature top_k top_p user verbosity"""
_OPEN_MODELS = """chat_template_kwargs enable_thinking guided_choice guided_json guided_regex include_stop_str_in_output
    min_tokens reasoning safe_prompt stop_token_ids structured_outputs thinking thinking_budget thinking_token_budget"""
_KNOWN = {
    CHAT: f"""{_SHARED} {_OPEN_MODELS} audio function_call functions logit_bias max_completion_tokens max_tokens
        modalities n parallel_tool_calls prediction reasoning_effort response_format tool_choice tools top_logprobs
        web_search_options""",
    RESPONSES: f"""{_SHARED} {_OPEN_MODELS} background conversation include max_output_tokens max_tool_calls
        parallel_tool_calls previous_response_id prompt reasoning text tool_choice tools top_logprobs truncation""",
    EMBEDDINGS: "dimensions encoding_format user input_type truncate task late_chunking",
    COMPLETIONS: f"{_SHARED} {_OPEN_MODELS} best_of echo logit_bias max_tokens n suffix",
    MODERATIONS: "",
}
"""Names of the endpoints' references, and those that vLLM, DashScope and others add (November 2026)."""
_SET_BY_THE_JOB = {"model", "messages", "input", "prompt", "stream", "instructions", "stream_options"}
_NEAR = 0.8


def known_parameters(url: str) -> set[str]:
    """Names that an endpoint is known to take."""
    return set(_KNOWN.get(url, "").split())


def check_parameters(url: str, parameters: Mapping[str, Any]) -> None:
    """Refuses what cannot be meant.

    Raises:
        ValueError: a name that the task sets, or a misspelt one.
    """
    known = known_parameters(url)
    if reserved := sorted((parameters.keys() & _SET_BY_THE_JOB) - ({"prompt"} if url == RESPONSES else set())):
        raise ValueError(f"parameters cannot hold {', '.join(reserved)}: the task and the model field set the body")
    elsewhere = set().union(*map(known_parameters, _KNOWN))
    for name in set(unknown_parameters(url, parameters)) - elsewhere:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=_NEAR)
        if near:
            raise ValueError(f"parameters.{name} is no parameter of {url}; did you mean {near[0]!r}?")


def unknown_parameters(url: str, parameters: Iterable[str]) -> list[str]:
    """Names that an endpoint is not known to take: they are sent all the same."""
    return sorted(set(parameters) - known_parameters(url) - {"stream_options"})


def merged(body: Mapping[str, Any], parameters: Mapping[str, Any], at: str = "parameters") -> dict[str, Any]:
    """A body with parameters in it, at every depth.

    Raises:
        JobError: both set the same.
    """
    whole = dict(body)
    for name, value in parameters.items():
        if name not in whole or whole[name] == value:
            whole[name] = value
        elif isinstance(value, Mapping) and isinstance(whole[name], Mapping):
            whole[name] = merged(whole[name], value, f"{at}.{name}")
        else:
            raise JobError(f"{at}.{name} clashes with what the task sets there ({whole[name]!r:.80}): leave one of "
                           "them out")  # fmt: skip
    return whole
