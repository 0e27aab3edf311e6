"""What lies in the data directory is its owner's alone, and what is deleted is gone."""

import stat
from pathlib import Path

import pytest

from overnight.endpoint.storage.privacy import close_to_others
from overnight.endpoint.storage.store import Store
from tests.test_endpoint_support import (
    Planned,
    client,
    create_batch,
    endpoint,
    held_upstream,
    request_line,
    until,
    wait_for_end,
)

LINES = [request_line("a", "hi"), request_line("b", "refused")]
SECRET = b"an answer that nobody else may read"
ANSWERS: dict[str, list[Planned]] = {
    "hi": [(200, {}, b'{"text":"%s"}' % (SECRET * 500))],
    "refused": [(400, {}, b'{"error":{"message":"%s"}}' % SECRET)],
}


def modes(data: Path) -> dict[str, str]:
    """The permissions of a data directory and of all that lies there."""
    found = {path.relative_to(data).as_posix(): path.stat().st_mode for path in (data, *data.rglob("*"))}
    return {name: stat.filemode(mode) for name, mode in sorted(found.items())}


def is_private(found: dict[str, str]) -> bool:
    return set(found.values()) == {"-rw-------", "drwx------"}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277], ids=oct)
def test_files_are_the_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with held_upstream() as upstream, endpoint(data, "--upstream", upstream.url, umask=umask) as running:
        with client(running.url) as sdk:
            wait_for_end(sdk, create_batch(sdk, LINES))
        found = modes(data)
    assert is_private(found), found
    names = {
        "endpoint.json",
        "endpoint.lock",
        "endpoint.sqlite",
        "endpoint.sqlite-shm",
        "endpoint.sqlite-wal",
        "log.txt",
    }
    assert found.keys() >= names
    assert len([name for name in found if name.startswith("files/file-")]) == 2


def test_a_directory_that_was_open_to_others_is_closed_at_the_start(tmp_path: Path) -> None:
    with held_upstream() as upstream:
        with endpoint(tmp_path, "--upstream", upstream.url) as first, client(first.url) as sdk:
            wait_for_end(sdk, create_batch(sdk, LINES))
            first.kill()
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        with endpoint(tmp_path, "--upstream", upstream.url):
            found = modes(tmp_path)
    assert is_private(found), found


def test_files_that_are_not_the_servers_and_links_are_left_as_they_are(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere.txt"
    Store(data).close()
    elsewhere.touch(0o644)
    (data / "files" / "link").symlink_to(elsewhere)
    script = data / "script.sh"
    script.touch(0o755)
    kept = [stat.filemode(path.stat().st_mode) for path in (script, elsewhere)]
    close_to_others(data)
    assert [stat.filemode(path.stat().st_mode) for path in (script, elsewhere)] == kept


def test_a_directory_behind_a_link_is_closed_too(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir(0o755)
    link.symlink_to(folder)
    close_to_others(link)
    assert stat.filemode(folder.stat().st_mode) == "drwx------"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a folder whose mode nobody can change")
def test_a_folder_that_cannot_be_closed_is_said_and_used_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    close_to_others(Path("/proc/self/task"))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "stays readable by others" in said


def holding(data: Path, content: bytes) -> list[str]:
    """The files that hold some bytes."""
    return [path.name for path in data.rglob("*") if path.is_file() and content in path.read_bytes()]


def test_answers_that_are_deleted_are_gone_from_the_disk_also_after_a_kill(tmp_path: Path) -> None:
    with held_upstream(answers={prompt: list(planned) for prompt, planned in ANSWERS.items()}) as upstream:
        options = ("--upstream", upstream.url)
        with endpoint(tmp_path, *options) as first, client(first.url) as sdk:
            batch = wait_for_end(sdk, create_batch(sdk, LINES))
            for file_id in (batch.output_file_id, batch.error_file_id):
                assert SECRET in sdk.files.content(file_id or "").content
                sdk.files.delete(file_id or "")
            first.kill()
        assert holding(tmp_path, SECRET) == ["endpoint.sqlite-wal"]
        with endpoint(tmp_path, *options):
            until(lambda: holding(tmp_path, SECRET), lambda found: not found)


def test_the_log_of_the_database_is_left_alone_while_another_reads(tmp_path: Path) -> None:
    store, reader = Store(tmp_path), Store(tmp_path)
    reader._connection.execute("BEGIN")
    reader.finished_lines("a")
    assert not store.empty_log()
    reader._connection.execute("COMMIT")
    assert store.empty_log()
    reader.close()
    store.close()
