import hashlib
import http.server
import threading

import numpy as np
import pytest

from ard_jax.interop import download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A local HTTP server that can break off, and notes what it was asked."""

    def __init__(self):
        self.content, self.tag, self.ranges = CONTENT, '"one"', True
        self.break_after: list[
            int
        ] = []  # bytes that each of the next answers sends before it breaks
        self.refuse: list[int] = []  # status of each of the next answers, 0 for none
        self.asked: list[str] = []  # Range headers

    def answer(self, handler):
        self.asked.append(handler.headers.get("Range", ""))
        if status := self.refuse.pop(0) if self.refuse else 0:
            return handler.send_error(status)
        body, start = self.content, 0
        resumes = self.ranges and self.asked[-1] and handler.headers.get("If-Range") == self.tag
        if resumes:
            start = int(self.asked[-1].removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                return handler.end_headers()
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.send_header("ETag", self.tag)
        handler.end_headers()
        end = start + self.break_after.pop(0) if self.break_after else len(body)
        handler.wfile.write(body[start:end])
        handler.close_connection = True


@pytest.fixture
def server():
    ours = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            ours.answer(self)

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    ours.url = f"http://127.0.0.1:{web.server_port}/teacher.pt"
    yield ours
    web.shutdown()
    web.server_close()
    thread.join()


def fetch(server, target, **kwargs):
    return download.fetch(server.url, target, wait=0.01, timeout=5, **({"sha256": SHA} | kwargs))


def leftovers(target):
    return {p.name for p in target.parent.iterdir()} - {target.name, ".lock"}


def write_part(target, content, tag):
    """What an interrupted download leaves."""
    target.with_name(f"{target.name}.part").write_bytes(content)
    target.with_name(f"{target.name}.tag").write_text(tag)


def test_whole_file(server, tmp_path, capfd):
    target = tmp_path / "new" / "teacher.pt"
    assert fetch(server, target) == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == set()
    assert "300k" in capfd.readouterr().err  # progress
    assert fetch(server, target) == target
    assert len(server.asked) == 1  # what is there is left alone


def test_interrupted_transfer_is_continued_in_the_same_call(server, tmp_path):
    server.break_after = [100_000, 50_000]
    target = fetch(server, tmp_path / "teacher.pt")
    assert target.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_next_call_continues_where_the_last_one_stopped(server, tmp_path):
    server.break_after, server.refuse = [120_000], [0, 503, 503]
    target = tmp_path / "teacher.pt"
    with pytest.raises(download.DownloadError, match="120000 bytes are kept in .*teacher.pt.part"):
        fetch(server, target, attempts=2)
    assert not target.exists()
    server.refuse = []
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=120000-"
    assert leftovers(target) == set()


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    write_part(tmp_path / "teacher.pt", b"x" * 1000, '"another"')
    assert fetch(server, tmp_path / "teacher.pt").read_bytes() == CONTENT


def test_a_server_without_ranges(server, tmp_path):
    server.ranges, server.break_after = False, [100_000]
    assert fetch(server, tmp_path / "teacher.pt").read_bytes() == CONTENT


def test_part_that_is_already_whole(server, tmp_path):
    write_part(tmp_path / "teacher.pt", CONTENT, '"one"')
    assert fetch(server, tmp_path / "teacher.pt").read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"]


@pytest.mark.parametrize("sha256", [SHA[:8].upper(), ""])
def test_checksum_or_its_beginning(server, tmp_path, sha256):
    assert fetch(server, tmp_path / "teacher.pt", sha256=sha256).is_file()


@pytest.mark.parametrize(
    ("refuse", "options", "message"),
    [
        ([], {"sha256": "00000000"}, f"{SHA}, but 00000000 was expected"),
        ([404], {}, "404 .*--file=PATH"),
        ([], {"max_bytes": 1000}, "300000 bytes, more than the limit of 1000"),
    ],
)
def test_what_asking_again_would_not_mend(server, tmp_path, refuse, options, message):
    target, server.refuse = tmp_path / "teacher.pt", refuse
    with pytest.raises(download.DownloadError, match=message):
        fetch(server, target, **options)
    assert not target.exists() and leftovers(target) == set() and len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/x", "2 times in a row"),
        ("file:///etc/passwd", "only http and https"),
        ("ftp://host/x", "only http and https"),
        ("teacher.pt", "only http and https"),
    ],
)
def test_addresses_that_give_nothing(url, message, tmp_path):
    with pytest.raises(download.DownloadError, match=message):
        download.fetch(url, tmp_path / "x", attempts=2, wait=0.01, timeout=2)


def test_find_local(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "teacher.pt").touch()
    folders = [tmp_path / "a", tmp_path / "b"]
    assert download.find_local("teacher.pt", folders) == tmp_path / "b" / "teacher.pt"
    assert download.find_local("other.pt", folders) is None
