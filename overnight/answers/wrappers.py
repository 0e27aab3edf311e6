"""What models put round an answer: their thoughts, code fences, a sentence before or after. It is peeled off."""

from __future__ import annotations

import json
import re

_THOUGHT = re.compile(
    r"\s*(?:<(?P<tag>think|thinking|thought|reasoning)>(?P<inner>.*?)</(?P=tag)>|\[THINK\](?P<mistral>.*?)\[/THINK\])\s*",
    re.DOTALL | re.IGNORECASE,
)
_UNOPENED = re.compile(r"(?P<inner>.*?)</think>\s*", re.DOTALL)
"""Some chat templates open the tag in the prompt (DeepSeek-R1's): the answer only closes it."""
_FENCED = re.compile(r"```[A-Za-z0-9_-]*[ \t]*\n?(.*?)```", re.DOTALL)
_decoder = json.JSONDecoder()


def thought_and_rest(text: str) -> tuple[str | None, str]:
    """A model's thoughts before its answer, and the answer: the very text where there are none."""
    if "</" not in text and "[/" not in text:
        return None, text
    found = _THOUGHT.match(text)
    if found is None and "</think>" in text and "<think>" not in text:
        found = _UNOPENED.match(text)
    if found is None:
        return None, text
    groups = found.groupdict()
    inner = next((groups[name] for name in ("inner", "mistral") if groups.get(name) is not None), "")
    return inner.strip() or None, text[found.end() :]


def json_in(text: str) -> str:
    """The one JSON value in a text: the text itself, what stands in its one fence, or its one object between prose."""
    bare = text.strip()
    if bare.startswith(("{", "[", '"')) and _reads(bare):
        return bare
    fenced: list[str] = [one.strip() for one in _FENCED.findall(bare)]
    if len(fenced) == 1 and _reads(fenced[0]):
        return fenced[0]
    objects = _objects(bare)
    return objects[0] if len(objects) == 1 else bare


def _reads(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _objects(text: str) -> list[str]:
    """The outermost objects of a text."""
    found, at = [], text.find("{")
    while at >= 0:
        try:
            _, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found.append(text[at:end])
        at = text.find("{", end)
    return found
