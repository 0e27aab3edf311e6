"""A starter job: a commented job file for a dataset, with the columns and the task that fit what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any, NamedTuple

import minijinja
import yaml

from overnight.errors import JobError
from overnight.text import did_you_mean

KINDS = ("classify", "generate", "summarize", "translate", "extract", "embed")
_NAMES_OF_KEYS = ("id", "key", "uuid", "guid")
_RESERVED = frozenset({"true", "false", "none", "self", "loop", "range", "dict", "namespace", "debug"})
"""Words of Jinja's own."""
_MODELS = {"openai": "gpt-4o-mini", "local": "smollm2-135m-instruct"}
_JOB = """\
# The columns of [[path]]: [[columns | join(", ")]]
# What it would send and cost: overnight plan. Send it: overnight run. All settings: docs/jobs.md.
name: [[name]]
dataset:
  path: [[path | yaml]]
[% if key %]
  key: [[ [key] | yaml ]]   # names a row; checked to be unique
[% else %]
  # key: [id]   # the column that names a row, where there is one
[% endif %]

task:
  kind: [[task]]
[% if task == "classify" %]
  text: [[template | yaml]]
  labels: [[labels | yaml]][% if not own_labels %]   # put yours here[% endif %]

  label_name: [[label_name | yaml]]   # a word for what the labels tell, such as topic: small models need it
[% elif task == "generate" %]
  system: Answer in one sentence.
  prompt: [[("What is this about? " ~ template) | yaml]]
[% elif task == "summarize" %]
  text: [[template | yaml]]
  sentences: 2
[% elif task == "translate" %]
  text: [[template | yaml]]
  target_language: English
[% elif task == "extract" %]
  text: [[template | yaml]]
  fields: {name: string, amount: number}   # put yours here: string, integer, number, boolean, strings
[% else %]
  input: [[template | yaml]]
[% endif %]
[% if others %]
  # Other columns for templates: [[others | join(", ")]]
[% endif %]

model: [[model | yaml]][% if not known_model %]   # put the provider's name for it here[% endif %]

[% if task != "embed" %]
parameters:
  temperature: 0   # leave it out for reasoning models
  max_tokens: [[64 if task == "classify" else 400]]   # bounds every answer, and so the cost
[% endif %]
provider: {profile: [[profile]]}

# limits:
#   max_rows: 20      # the first rows only, to try it
#   budget_usd: 5     # a hard stop over all runs of this job
max_failed_fraction: 0.05   # of the rows; more without an answer fail the run
"""


class Asked(NamedTuple):
    """What a person asks for; what is None is chosen from the columns."""

    task: str = "classify"
    column: str | None = None
    labels: tuple[str, ...] = ()
    model: str | None = None
    profile: str = "openai"
    label_name: str = "label"


def likely_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The column of the longest texts: what a model is asked about."""
    lengths = {name: sum(len(value) for row in rows if isinstance(value := row.get(name), str)) for name in columns}
    return max(columns, key=lambda name: lengths[name])


def likely_key(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str | None:
    """The column that is named like a key, and whose values are all there and all different."""
    for name in columns:
        words = name.lower().replace("-", "_").split("_")
        values = [row.get(name) for row in rows]
        if words[-1] in _NAMES_OF_KEYS and None not in values and len({str(one) for one in values}) == len(values):
            return name
    return None


def starter_job(path: str, name: str, rows: Sequence[Mapping[str, Any]], asked: Asked) -> str:
    """The text of a job file.

    Args:
        path: of the dataset.
        name: of the job.
        rows: the dataset's first rows.
        asked: what the person chose.

    Raises:
        JobError: the column or the task is not there.
    """
    columns = list(rows[0])
    if asked.task not in KINDS:
        raise JobError(f"--task {asked.task}{did_you_mean(asked.task, KINDS)}: one of {', '.join(KINDS)}")
    if asked.column is not None and asked.column not in columns:
        raise JobError(f"{path} has no column {asked.column!r}{did_you_mean(asked.column, columns)}; "
                       f"it has: {', '.join(columns)}")  # fmt: skip
    if not (asked.label_name.isascii() and asked.label_name.isidentifier() and len(asked.label_name) <= 64):
        raise JobError(f"--label-name {asked.label_name!r}: write one word, such as sentiment")
    column, key = asked.column or likely_text(rows, columns), likely_key(rows, columns)
    usual = "text-embedding-3-small" if asked.task == "embed" else _MODELS.get(asked.profile)
    model = asked.model or usual
    values = {
        "path": path, "name": name, "columns": columns, "key": key, "task": asked.task, "template": _template(column),
        "labels": list(asked.labels or ("positive", "negative", "neutral")), "own_labels": bool(asked.labels),
        "others": [one for one in columns if one not in (column, key)], "model": model or "MODEL",
        "known_model": model is not None, "label_name": asked.label_name, "profile": asked.profile,
    }  # fmt: skip
    return _environment().render_str(_JOB, **values)


def _template(column: str) -> str:
    plain = column.isidentifier() and column.isascii() and not (iskeyword(column) or column in _RESERVED)
    return f"{{{{ {column} }}}}" if plain else f"{{{{ row[{json.dumps(column, ensure_ascii=False)}] }}}}"


def _environment() -> minijinja.Environment:
    """Templates whose marks are not those of the templates in a job."""
    environment = minijinja.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        block_start_string="[%", block_end_string="%]", variable_start_string="[[", variable_end_string="]]",
    )  # fmt: skip
    environment.add_filter("yaml", _yaml)
    return environment


def _yaml(value: Any) -> str:
    """A value on one line, as YAML reads it back."""
    text = yaml.safe_dump(value, width=float("inf"), allow_unicode=True, default_flow_style=True)
    return text.removesuffix("...\n").rstrip("\n")
