"""Job files: strict, with errors that name the line and the mend."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import JobError, Problem
from overnight.job.job import Job
from overnight.job.jobfile import job_schema, load_job

JOB: dict[str, Any] = {
    "name": "reviews",
    "dataset": {"path": "reviews.csv"},
    "task": {"kind": "classify", "text": "{{ review }}", "labels": ["good", "bad"]},
    "model": "some-model",
}
FILE = """\
name: reviews
dataset: {path: reviews.csv}
task:
  kind: classify
  text: "{{ review }}"
  labels: [good, bad]
model: some-model
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_a_file_a_dict_and_a_job_read_alike(tmp_path: Path) -> None:
    from_file = load_job(written(tmp_path, FILE))
    assert from_file == load_job(JOB) == load_job(from_file)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param(FILE + "modle: x\n", ["8: `modle` is not a known field; did you mean 'model'?"], id="field"),
        pytest.param(
            FILE.replace("labels", "lables"),
            ["6: `task.lables` is not a known field; did you mean 'labels'?", "3: `task.labels` is missing"],
            id="field of a task",
        ),
        pytest.param(
            FILE.replace("classify", "clasify"),
            ["3: `task.kind` 'clasify' is not known; did you mean 'classify'?"],
            id="kind",
        ),
        pytest.param(
            FILE + "limits:\n  max_request: 5\n",
            ["9: `limits.max_request` is not a known field; did you mean 'max_requests'?"],
            id="limit",
        ),
        pytest.param(
            FILE + "limits: {max_attempts: 0}\n",
            ["8: `limits.max_attempts` has to be greater than or equal to 1"],
            id="bound",
        ),
        pytest.param(
            FILE + "provider: {profile: opnai}\n",
            ["8: there is no provider profile 'opnai'; did you mean 'openai'?"],
            id="profile",
        ),
        pytest.param(FILE.replace("model: some-model\n", ""), ["a model is needed: model: NAME"], id="no model"),
        pytest.param(FILE + "name: again\n", ["8: `name` stands here a second time"], id="a key twice"),
        pytest.param(FILE + "parameters: {stream: true}\n", ["parameters cannot hold stream"], id="reserved"),
        pytest.param("name: [unclosed\n", ["not valid YAML"], id="bad YAML"),
        pytest.param("- just\n- a list\n", ["holds no job"], id="no mapping"),
        pytest.param("", ["holds no job"], id="empty"),
    ],
)
def test_what_is_wrong_in_a_file_is_listed_with_its_line(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    for message in messages:
        line, _, rest = message.partition(": ")
        expected = f"{path}:{line}: {rest}" if line.isdigit() else message
        assert expected in str(caught.value)


def test_a_yaml_error_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job\.yaml:2"):
        load_job(written(tmp_path, "name: a\n  b: c\n"))


def test_a_missing_file_is_one_clear_error() -> None:
    with pytest.raises(JobError, match=r"cannot read the job file nowhere\.yaml"):
        load_job("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("limits.max_requests=7", lambda job: job.limits.max_requests == 7),
        ("provider.base_url=http://127.0.0.1:1/v1", lambda job: job.profile.base_url == "http://127.0.0.1:1/v1"),
        ("parameters.temperature=0.5", lambda job: job.parameters["temperature"] == 0.5),
        ("task.labels=[a, b, c]", lambda job: job.task.labels == ("a", "b", "c")),
        ("report.compare=expected", lambda job: job.report.compare == "expected"),
    ],
)
def test_any_dotted_key_can_be_set_over_the_file(override: str, read: Any) -> None:
    assert read(load_job(JOB, [override]))


@pytest.mark.parametrize("override", ["limits", "=5", "name.first=x"])
def test_an_override_that_cannot_be_applied_says_how_to_write_it(override: str) -> None:
    with pytest.raises(JobError, match="--set"):
        load_job(JOB, [override])


def test_limits_may_change_without_changing_the_definition_but_the_prompt_may_not() -> None:
    job = load_job(JOB)
    assert load_job(JOB, ["limits.max_requests=5"]).definition() == job.definition()
    assert load_job(JOB, ["task.text='{{ other }}'"]).definition() != job.definition()


def test_an_address_makes_any_profile_usable() -> None:
    assert not load_job(JOB, ["provider.profile=deepseek"]).profile.has_batch_api
    overrides = ["provider.profile=deepseek", "provider.base_url=http://127.0.0.1:8642/v1"]
    assert load_job(JOB, overrides).profile.has_batch_api


def test_every_field_of_the_schema_is_described() -> None:
    schema = job_schema()
    models = [schema, *schema["$defs"].values()]
    bare = [
        f"{model.get('title')}.{name}"
        for model in models
        for name, field in model.get("properties", {}).items()
        if name != "kind" and "description" not in field | schema["$defs"].get(field.get("$ref", "")[8:], {})
    ]
    assert bare == []


def test_errors_survive_pickling_with_their_problems() -> None:
    error = JobError("broken:", [Problem("file:1", "this"), Problem("", "that")])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (JobError, "broken:\n  - file:1: this\n  - that")


def test_a_job_is_whole_in_json() -> None:
    job = load_job(JOB)
    assert Job.model_validate_json(job.model_dump_json(by_alias=True)) == job
