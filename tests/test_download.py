"""Data sets that are not on disk: every path is taken against a server on this host, and nothing leaves it."""

import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_llama import file_of, tiny
from test_tokenizer import PIECES, PUBLISHED, content

import world
from fedshare.data import download, files, sentiment, sources
from fedshare.data.files import find
from fedshare.data.sources import Source
from fedshare.data.tokenizer import Llama2cTokenizer
from fedshare.errors import UserError
from fedshare.experiments.config.compose import resolved
from fedshare.experiments.config.instantiate import make
from fedshare.models import Llama2c

HOST = "data.example"  # of the published addresses; only the mirror stands behind it
BODY = bytes(range(256)) * 4096  # 1 MiB


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves `contents`. Each number in `cuts` ends one answer after so many bytes; `asked` is what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        body = self.server.contents.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[start : start + cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("FEDSHARE_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.delenv("http_proxy", raising=False)
        yield server
        server.shutdown()
        thread.join()


def single(body: bytes = BODY) -> Source:
    return Source("one", {"a.bin": md5(body)}, (f"http://{HOST}/set/",))


def packed(archive: bytes, suffix: str, inside: str = "inner") -> Source:
    address = f"https://{HOST}/set.{suffix}"
    return Source("many", {"a.bin": "", "b.bin": ""}, (address,), archive=md5(archive), inside=inside)


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def left(folder: Path) -> list[str]:
    """All files below, but the lock."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    for _ in range(2):
        assert find(single(), tmp_path)["a.bin"].read_bytes() == BODY
    assert server.asked == [(f"/{HOST}/set/a.bin", None)]
    assert left(tmp_path) == ["one/a.bin"]


def test_a_cut_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    server.cuts = [300_000, 500_000]
    assert find(single(), tmp_path)["a.bin"].read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=800000-"]


def test_the_next_process_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    server.cuts = [300_000, 0]
    with pytest.raises(UserError, match=r"cut off after 300000 of 1048576 bytes") as error:
        find(single(), tmp_path)
    one_line(error)
    assert left(tmp_path) == ["one/a.bin.part"]
    assert find(single(), tmp_path)["a.bin"].read_bytes() == BODY
    assert server.asked[-1][1] == "bytes=300000-"


@pytest.mark.parametrize("partial", [len(BODY), len(BODY) + 1], ids=["complete", "too long"])
def test_a_part_that_no_range_continues(server: Server, tmp_path: Path, partial: int) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.bin.part").write_bytes((BODY + b"?")[:partial])
    assert find(single(), tmp_path)["a.bin"].read_bytes() == BODY
    assert len(server.asked) == 1 + (partial > len(BODY))


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    server.ranges, server.cuts = False, [300_000]
    assert find(single(), tmp_path)["a.bin"].read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY[::-1]
    with pytest.raises(UserError, match="does not match the known hash") as error:
        find(single(), tmp_path)
    assert f"/{HOST}/set/a.bin" in one_line(error)
    assert left(tmp_path) == []


def test_the_second_address_helps_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    server.contents["/second.example/a.bin"] = BODY
    source = Source("one", {"a.bin": md5(BODY)}, (f"http://{HOST}/set/", "http://second.example/"))
    assert find(source, tmp_path)["a.bin"].read_bytes() == BODY


def test_404_says_what_to_put_where(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="404") as error:
        find(single(), tmp_path)
    line = one_line(error)
    assert line.startswith(f"put a.bin into {tmp_path / 'one'}: ")
    assert f"http://127.0.0.1:{server.server_port}/{HOST}/set/a.bin" in line
    assert len(server.asked) == 1


def test_no_server_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("FEDSHARE_MIRROR", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="refused") as error:
        find(packed(b"", "zip"), tmp_path)
    assert one_line(error).startswith(f"put a.bin, b.bin into {tmp_path / 'many'} or {tmp_path / 'inner'}: ")


def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FEDSHARE_MIRROR", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="timed out") as error:
            find(single(), tmp_path)
    one_line(error)


def test_the_deadline_of_a_download(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    monkeypatch.setattr(download, "DEADLINE", -1.0)
    with pytest.raises(UserError, match="not done after"):
        find(single(), tmp_path)


@pytest.mark.parametrize(("pack", "suffix"), [(tar, "tar.gz"), (zipped, "zip")])
def test_an_archive_gives_its_wanted_files_and_no_other(
    pack: object, suffix: str, server: Server, tmp_path: Path
) -> None:
    members = {"inner/a.bin": b"A" * 1000, "inner/b.bin": b"B", "inner/c.bin": b"C", "../../outside.bin": b"evil"}
    archive = pack(members)  # type: ignore[operator]
    server.contents[f"/{HOST}/set.{suffix}"] = archive
    root = tmp_path / "deep" / "base"
    found = find(packed(archive, suffix), root)
    assert {name: path.read_bytes() for name, path in found.items()} == {"a.bin": b"A" * 1000, "b.bin": b"B"}
    assert left(tmp_path) == ["deep/base/many/a.bin", "deep/base/many/b.bin"]


@pytest.mark.parametrize(
    ("archive", "suffix"),
    [(b"not an archive", "zip"), (tar({"inner/a.bin": b"A"}), "tar.gz"), (zipped({"inner/a.bin": b"A"}), "zip")],
    ids=["broken", "tar without b.bin", "zip without b.bin"],
)
def test_an_archive_that_is_not_whole_gives_nothing(
    archive: bytes, suffix: str, server: Server, tmp_path: Path
) -> None:
    server.contents[f"/{HOST}/set.{suffix}"] = archive
    with pytest.raises(UserError, match=f"set.{suffix} cannot be unpacked") as error:
        find(packed(archive, suffix), tmp_path)
    one_line(error)
    assert not (tmp_path / "many" / "a.bin").exists()


def test_a_link_in_an_archive_leads_nowhere(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("inner/a.bin", "inner/b.bin"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
            archive.addfile(info)
    server.contents[f"/{HOST}/set.tar.gz"] = buffer.getvalue()
    with pytest.raises(UserError, match="cannot be unpacked"):
        find(packed(buffer.getvalue(), "tar.gz"), tmp_path / "root")


def test_only_what_is_missing_is_asked_for(server: Server, tmp_path: Path) -> None:
    source = Source("one", {"a.gz": md5(b"A"), "b.gz": md5(b"B"), "a": ""}, (f"http://{HOST}/set/",))
    server.contents[f"/{HOST}/set/b.gz"] = b"B"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_bytes(b"unpacked")
    assert {name: path.name for name, path in find(source, tmp_path).items()} == {"a": "a", "b": "b.gz"}
    assert server.asked == [(f"/{HOST}/set/b.gz", None)]


def test_processes_that_start_together_download_once(server: Server, tmp_path: Path) -> None:
    server.contents[f"/{HOST}/set/a.bin"] = BODY
    threads = [threading.Thread(target=find, args=(single(), tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert (tmp_path / "one" / "a.bin").read_bytes() == BODY


def test_a_loader_downloads_what_it_needs(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = zipped({f"SST-2/{part}.tsv": b"sentence\tlabel\ngood\t1\n" for part in ("train", "dev", "test")})
    server.contents["/dl.fbaipublicfiles.com/glue/data/SST-2.zip"] = archive
    monkeypatch.setattr(sentiment, "SST2", replace(sources.SST2, archive=md5(archive)))
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path))
    assert len(sentiment.sst2(vocabulary=9, length=2).pool) == 2
    assert left(tmp_path) == ["sst2-glue/dev.tsv", "sst2-glue/train.tsv"]


STORIES = "/huggingface.co/karpathy/tinyllamas/resolve/main/stories260K/"


def test_a_tokenizer_that_is_asked_for_by_its_published_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes with its model, once; a file of one's own is one's own."""
    made = {"stories260K.bin": file_of(tiny()), "tok512.bin": content()}
    server.contents |= {STORIES + name: body for name, body in made.items()}
    assert list(sources.STORIES260K.files) == list(made)
    sums = {name: f"sha256:{hashlib.sha256(body).hexdigest()}" for name, body in made.items()}
    monkeypatch.setattr("fedshare.data.tokenizer.STORIES260K", replace(sources.STORIES260K, files=sums))
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        node = OmegaConf.create({"_target_": "fedshare.data.tokenizer.Llama2cTokenizer", "path": PUBLISHED})
        assert make(node, "data.load.tokenizer").vocabulary == 259 + len(PIECES)
        assert Llama2c(30, 12, 30, "stories260K/stories260K.bin").norm.weight.shape == (24,)
    assert [path for path, _ in server.asked] == [STORIES + name for name in made]
    assert left(tmp_path / "data") == [f"weights/stories260K/{name}" for name in made]

    (tmp_path / "stories260K").mkdir()
    (tmp_path / PUBLISHED).write_bytes(content(PIECES[:-1]))
    assert Llama2cTokenizer(PUBLISHED).vocabulary == 258 + len(PIECES)
    (tmp_path / "own.bin").write_bytes(content(PIECES[:-2]))
    assert Llama2cTokenizer("own.bin").vocabulary == 257 + len(PIECES)
    assert len(server.asked) == 2


def test_published_names_that_nobody_answers_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path))
    place = tmp_path / "weights" / "stories260K"
    with pytest.raises(
        UserError, match=f"^data.load: put stories260K.bin, tok512.bin into {place}: not there, and"
    ) as no:
        world.dataset(resolved(["data=shakespeare_tokens"]))
    one_line(no)
    assert "weights=" not in str(no.value)
    model = resolved(["data=shakespeare_tokens"]).model
    with pytest.raises(UserError, match=r"^model: checkpoint=stories260K/stories260K\.bin: there is no "):
        make(model, "model")


def test_all_that_is_downloaded_has_a_checksum() -> None:
    published = [value for value in vars(sources).values() if isinstance(value, Source)]
    assert len(published) == 9
    for source in published:
        checksums = [source.archive] if source.archive else list(source.files.values())
        assert all(checksum.startswith(("md5:", "sha256:")) for checksum in checksums)
        assert bool(source.archive) == bool(source.inside)


def test_where_the_data_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path / "variable"))
    assert files.data_folder() == tmp_path / "variable"
    assert files.data_folder(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.delenv("FEDSHARE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.data_folder().name == "fedshare"


def test_a_mirror_is_an_http_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSHARE_MIRROR", "/mnt/mirror")
    with pytest.raises(UserError, match="FEDSHARE_MIRROR is '/mnt/mirror': it must start with http"):
        find(single(), tmp_path)


def test_a_root_that_is_no_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"put a\.bin into"):
        find(single(), tmp_path / "file")
    assert server.asked == []
