"""Logs of functions: last words, rotation, merging, following."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

from erless.deploy.local.supervisor.folder.logs import last_words, log_file, read_logs, rotate


def line(time: float, message: str) -> str:
    return json.dumps({"time": time, "level": "info", "message": message}) + "\n"


def test_last_words_are_the_last_message_of_this_life(tmp_path: Path) -> None:
    file = tmp_path / "f.0.log"
    file.write_text(line(1, "of another life"))
    start = file.stat().st_size
    assert last_words(file, start) == ""
    with file.open("a") as opened:
        opened.write(line(2, "a file is damaged") + "Traceback …\n\n")
    assert last_words(file, start) == "a file is damaged"
    file.write_text("no JSON at all\n")
    assert last_words(file) == "no JSON at all"
    assert last_words(tmp_path / "lost.log") == ""


def test_rotation_keeps_what_was_written_and_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "f.0.log"
    with file.open("ab") as writer:  # as a replica holds it
        writer.write(b"x" * 100)
        writer.flush()
        assert not rotate(file, 100)
        assert rotate(file, 99)
        writer.write(b"after")
        writer.flush()
    assert file.read_bytes() == b"after"
    assert (tmp_path / "f.0.log.1").read_bytes() == b"x" * 100


def test_lines_of_many_files_come_in_order_and_are_followed(tmp_path: Path) -> None:
    first, second = log_file(tmp_path, "sparse-a", 0), log_file(tmp_path, "gateway-b", 1)
    first.write_text(line(1, "one") + line(3, "three") + "  its trace\n")
    second.write_text(line(2, "two") + line(4, "four"))
    names = {"sparse-a": "hot", "gateway-b": "gateway"}
    found = list(read_logs(tmp_path, names.get, 4, follow=False))
    assert [each.split(" ", 1)[0] for each in found] == ["gateway", "hot", "hot", "gateway"]
    assert [word for word in ("two", "three", "trace", "four") if word in "".join(found)] == [
        "two",
        "three",
        "trace",
        "four",
    ]
    assert list(read_logs(tmp_path, {"sparse-a": "hot"}.get, 1, follow=False)) == [
        "hot   its trace"
    ]

    follower = read_logs(tmp_path, names.get, 0, follow=True)
    heard: list[str] = []
    thread = Thread(target=lambda: heard.append(next(follower)), daemon=True)
    thread.start()
    for number in range(600):  # it follows from when it begins to
        with second.open("a") as opened:
            opened.write(line(5 + number, "later"))
        thread.join(timeout=0.1)
        if heard:
            break
    assert '"later"' in heard[0]
