"""The guide's way of each stage, in plain Python: lists of dicts and `json`, all in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

SYSTEM = "Classify the text as one of: positive, negative."


def build(dataset: Path, requests: Path) -> None:
    """A request per row, `json.dumps` a line."""
    documents = pd.read_parquet(dataset).to_dict("records")
    lines = []
    for number, document in enumerate(documents):
        lines.append(
            {
                "custom_id": f"request-{number + 1:06d}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "some-model",
                    "messages": [
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": f"{document['title']}\n{document['text']}"},
                    ],
                    "max_tokens": 64,
                    "temperature": 0,
                },
            }
        )
    with requests.open("w") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")


def validate(requests: Path) -> bool:
    """The guide's five checks: JSON, four required fields, and the length of the id."""
    with requests.open() as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except json.JSONDecodeError:
                return False
            if any(field not in request for field in ("custom_id", "method", "url", "body")):
                return False
            if len(request["custom_id"]) > 64:
                return False
    return True


def _results(output: Path) -> list[dict[str, Any]]:
    results = []
    for line in output.read_text().strip().split("\n"):
        result = json.loads(line)
        if result.get("error"):
            continue
        body = result["response"]["body"]
        results.append(
            {
                "custom_id": result["custom_id"],
                "answer": body["choices"][0]["message"]["content"],
                "finish_reason": body["choices"][0]["finish_reason"],
                "model": body["model"],
                "input_tokens": body["usage"]["prompt_tokens"],
                "output_tokens": body["usage"]["completion_tokens"],
                "raw": json.dumps(body),
            }
        )
    return results


def parse(output: Path, parquet: Path) -> None:
    """All results as dicts, then a DataFrame, then Parquet."""
    pd.DataFrame(_results(output)).to_parquet(parquet)


def join(dataset: Path, parquet: Path, rows: Path, joined: Path) -> None:
    """A dict of results by id, looked up row by row."""
    answers = {result["custom_id"]: result for result in pd.read_parquet(parquet).to_dict("records")}
    ids = pd.read_parquet(rows)["custom_id"].to_list()
    table = []
    for document, custom_id in zip(pd.read_parquet(dataset).to_dict("records"), ids, strict=True):
        answer = answers.get(custom_id, {})
        table.append({**document, **{name: value for name, value in answer.items() if name != "raw"}})
    pd.DataFrame(table).to_parquet(joined)
