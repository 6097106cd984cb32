"""What step 1 promises, tried with a real server on this machine."""
import collections
import hashlib
import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile

import PIL.Image
import pytest

import download_coco
from captioning.coco import image_path, read_boxes, read_captions, splits
from commands import ROOT
from runtime import cli

ANNOTATIONS = "annotations/annotations_trainval2014.zip"
TRAIN = "zips/train2014.zip"
NUM_TRAIN, NUM_VAL = 30, 4


class Server:
    """A web server for a dict of files, which can misbehave on demand."""

    def __init__(self):
        self.files = {}                           # path -> bytes
        self.requests = []                        # (path, Range header or None)
        self.cuts = collections.defaultdict(list)  # path -> lengths of broken answers
        self.statuses = collections.defaultdict(list)  # path -> statuses to send first
        self.redirects = {}                       # path -> path
        self.delays = collections.defaultdict(list)  # path -> seconds before answers
        self.knows_ranges = self.tells_length = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        class Threads(http.server.socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64  # connections beyond it would wait a second

            def handle_error(self, *_):
                """A client that has gone: its traceback would land in another test."""

        self.http = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler):
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((path, wanted))
        body, start, status = self.files.get(path), 0, 200
        if self.delays[path]:
            time.sleep(self.delays[path].pop(0))
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", f"{self.url}/{self.redirects[path]}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        if self.statuses[path]:
            return handler.send_error(self.statuses[path].pop(0))
        if body is None:
            return handler.send_error(404)
        if wanted and self.knows_ranges:
            start, status = int(re.match(r"bytes=(\d+)-$", wanted).group(1)), 206
            if start >= len(body):
                return handler.send_error(416)
        handler.send_response(status)
        if self.tells_length:
            handler.send_header("Content-Length", str(len(body) - start))
        if status == 206:
            handler.send_header("Content-Range",
                                f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        end = start + self.cuts[path].pop(0) if self.cuts[path] else None
        handler.wfile.write(body[start:end])

    def asked_for(self, path):
        """The Range headers of all requests for `path`."""
        return [wanted for name, wanted in self.requests if name == path]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download_coco, "PAUSES", (0.01, 0.01))
    server = Server()
    serve = server.http.serve_forever
    threading.Thread(target=serve, args=(0.01,), daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def coco(server, monkeypatch):
    """A server with a tiny COCO 2014: NUM_TRAIN and NUM_VAL images of 5 x 3 pixels."""
    annotations = {}
    for split, first, number in (("train2014", 100, NUM_TRAIN),
                                 ("val2014", 500, NUM_VAL)):
        names = {n: f"COCO_{split}_{n:012}.jpg" for n in range(first, first + number)}
        for n, name in names.items():
            server.files[f"{split}/{name}"] = jpeg(n % 256)
        images = [{"id": n, "file_name": names[n], "width": 5, "height": 3}
                  for n in names]
        annotations[f"annotations/captions_{split}.json"] = json.dumps({
            "info": {"year": 2014}, "images": images,
            "annotations": [{"id": 9 * n + i, "image_id": n, "caption": f"grey {n} {i}"}
                            for i in range(2) for n in names]})
        annotations[f"annotations/instances_{split}.json"] = json.dumps({
            "images": images, "categories": [{"id": 7, "name": "cat"}],
            "annotations": [{"id": n, "image_id": n, "category_id": 7,
                             "bbox": [0, 1, 2, n], "segmentation": [[0, 0, 1, 1, 2, 2]]}
                            for n in names]})
        serve_archive(server, monkeypatch, f"zips/{split}.zip",
                      zip_of({f"{split}/{name}": server.files[f"{split}/{name}"]
                              for name in names.values()}))
    serve_archive(server, monkeypatch, ANNOTATIONS, zip_of(annotations))
    return server


def jpeg(grey):
    file = io.BytesIO()
    PIL.Image.new("RGB", (5, 3), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def zip_of(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return file.getvalue()


def serve_archive(server, monkeypatch, name, content, md5=None):
    server.files[name] = content
    monkeypatch.setitem(download_coco.ARCHIVES, name,
                        (len(content), md5 or hashlib.md5(content).hexdigest()))


@pytest.fixture
def download(coco, monkeypatch, tmp_path):
    """Run the script with extra flags; the data set is tmp_path/data."""
    def run(*flags):
        monkeypatch.setattr(sys, "argv", [
            "download_coco.py", "--data", str(tmp_path / "data"), "--mirror", coco.url,
            *map(str, flags)])
        download_coco.main()
    return run


@pytest.fixture
def data(tmp_path):
    return str(tmp_path / "data")


def files_in(data, split):
    return sorted(os.listdir(os.path.join(data, split)))


def change(data, name, edit):
    """Rewrite an annotations file after `edit(content)`."""
    path = os.path.join(data, "annotations", name)
    with open(path) as file:
        content = json.load(file)
    edit(content)
    with open(path, "w") as file:
        json.dump(content, file)


# The command

def test_whole_archives_become_a_folder_in_cocos_layout(download, coco, data, capsys):
    download()
    assert splits(data) == ["train2014", "val2014"]
    images = read_captions(data, "val2014")
    assert [image.id for image in images] == [500, 501, 502, 503]
    assert images[1].captions == ["grey 501 0", "grey 501 1"]
    for image in images:
        path = image_path(data, "val2014", image.file_name)
        with open(path, "rb") as file:
            assert file.read() == coco.files[f"val2014/{image.file_name}"]
    assert read_boxes(data, "val2014")[502] == (
        (5, 3), [("cat", (0, 1, 2, 502))])
    assert len(files_in(data, "train2014")) == NUM_TRAIN
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("[1/") and "val2014: 4 images, 8 captions" in output
    assert output[-1] == f"next: {cli.interpreter()} extract_features.py --data {data}"


@pytest.mark.parametrize("flags", [(), ("--num-images", 7)])
def test_a_second_run_downloads_nothing_and_says_so(download, coco, data, capsys,
                                                    flags):
    download(*flags)
    del coco.requests[:]
    capsys.readouterr()
    before = os.stat(os.path.join(data, "annotations/instances_train2014.json"))
    download(*flags)
    assert coco.requests == []
    assert "already there" in capsys.readouterr().out
    after = os.stat(os.path.join(data, "annotations/instances_train2014.json"))
    assert after.st_mtime_ns == before.st_mtime_ns


def test_a_second_run_unpacks_only_what_is_missing(download, coco, data):
    download("--splits", "val")
    names = files_in(data, "val2014")
    paths = [os.path.join(data, "val2014", name) for name in names]
    os.remove(paths[2])
    kept = os.stat(paths[0]).st_mtime_ns
    del coco.requests[:]
    download("--splits", "val")
    assert files_in(data, "val2014") == names and coco.requests == []
    assert os.stat(paths[0]).st_mtime_ns == kept


def test_an_archive_of_images_may_be_removed_after_unpacking(download, coco, data):
    download("--splits", "val")
    os.remove(os.path.join(data, "archives", "val2014.zip"))
    del coco.requests[:]
    download("--splits", "val")
    assert coco.requests == []


def test_only_the_chosen_images_and_their_annotations_are_there(download, coco, data):
    download("--num-images", 7, "--splits", "train")
    images = read_captions(data, "train2014")
    assert len(images) == 7
    assert files_in(data, "train2014") == [image.file_name for image in images]
    assert all(image.captions == [f"grey {image.id} {i}" for i in range(2)]
               for image in images)
    assert set(read_boxes(data, "train2014")) == {i.id for i in images}
    with open(os.path.join(data, "annotations/instances_train2014.json")) as file:
        instances = json.load(file)
    assert all(item["segmentation"] for item in instances["annotations"])
    assert len(instances["images"]) == 7 and len(instances["categories"]) == 1
    assert not coco.asked_for(TRAIN)
    assert splits(data) == ["train2014"]


def test_a_larger_number_keeps_the_images_that_are_there(download, coco, data):
    download("--num-images", 5, "--splits", "train")
    few = files_in(data, "train2014")
    del coco.requests[:]
    download("--num-images", 8, "--splits", "train")
    assert set(few) < set(files_in(data, "train2014"))
    assert len(coco.requests) == 3
    assert len(read_captions(data, "train2014")) == 8


def test_the_seed_decides_which_images(download, data):
    chosen = {}
    for seed in (1, 2, 1):
        download("--num-images", 6, "--splits", "train", "--seed", seed)
        images = read_captions(data, "train2014")
        assert chosen.setdefault(seed, images) == images
    assert chosen[1] != chosen[2]


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("body, reason", [(None, "404"), (b"<html>", "not a picture")])
def test_a_failed_image_is_listed_and_left_out(download, coco, data, body, reason):
    name = "COCO_train2014_000000000111.jpg"
    good = coco.files.pop(f"train2014/{name}")
    if body:
        coco.files[f"train2014/{name}"] = body
    download("--num-images", NUM_TRAIN, "--splits", "train")
    images = read_captions(data, "train2014")
    assert len(images) == NUM_TRAIN - 1 and 111 not in {image.id for image in images}
    assert 111 not in read_boxes(data, "train2014")
    assert name not in files_in(data, "train2014")
    report = os.path.join(data, "failed_images_train2014.txt")
    with open(report) as file:
        listed, why = file.read().rstrip("\n").split("\t")
    assert listed == name and reason in why

    coco.files[f"train2014/{name}"] = good
    download("--num-images", NUM_TRAIN, "--splits", "train")
    assert len(read_captions(data, "train2014")) == NUM_TRAIN
    assert not os.path.exists(report)


@pytest.mark.fault("downloads that fail")
def test_many_failed_images_stop_the_run(download, coco, data):
    for n in (103, 108, 111):
        del coco.files[f"train2014/COCO_train2014_{n:012}.jpg"]
    with pytest.raises(cli.UserError, match="2 of 30 images of train2014, more than"):
        download("--num-images", NUM_TRAIN, "--splits", "train")
    assert os.path.exists(os.path.join(data, "failed_images_train2014.txt"))


@pytest.mark.fault("downloads that fail")
def test_too_little_disk_space_is_seen_before_the_download(download, coco, data,
                                                           monkeypatch):
    monkeypatch.setattr(download_coco.shutil, "disk_usage",
                        lambda path: collections.namedtuple("Usage", "free")(1000))
    with pytest.raises(cli.UserError, match=f"{data}: needs .* GB, 0.0 GB are free"):
        download()
    assert coco.requests == []


@pytest.mark.fault("downloads that fail")
def test_a_wrong_checksum_keeps_the_file_aside(download, coco, data, monkeypatch):
    serve_archive(coco, monkeypatch, ANNOTATIONS, coco.files[ANNOTATIONS], md5="0" * 32)
    with pytest.raises(cli.UserError, match="MD5"):
        download()
    assert os.listdir(os.path.join(data, "archives")) == [
        "annotations_trainval2014.zip.bad"]
    assert not os.path.exists(os.path.join(data, "annotations"))


@pytest.mark.fault("downloads that fail")
def test_an_archive_of_another_length_is_refused_at_once(download, coco, data):
    coco.files[ANNOTATIONS] = b"<html>Please log in"
    with pytest.raises(cli.UserError, match="has 19 bytes, not"):
        download()


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "train/../../evil",
                                  "..\\evil.jpg", "C:\\evil.jpg"])
def test_an_archive_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({"train/good.jpg": "good", name: "evil"}))
    with pytest.raises(cli.UserError, match="leads out of the folder"):
        download_coco.unpack(str(archive), str(tmp_path / "data"), ["train/good.jpg"])
    assert os.listdir(str(tmp_path)) == ["a.zip"]


@pytest.mark.fault("downloads that fail")
def test_an_archive_with_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("train2014")
    link.external_attr = 0o120777 << 16
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({"train/good.jpg": "good"}))
    with zipfile.ZipFile(str(archive), "a") as zipped:
        zipped.writestr(link, "/tmp")
    with pytest.raises(cli.UserError, match="leads out of the folder"):
        download_coco.unpack(str(archive), str(tmp_path / "data"), ["train/good.jpg"])


@pytest.mark.fault("downloads that fail")
def test_a_damaged_archive_is_a_user_error(tmp_path):
    archive, content = tmp_path / "a.zip", zip_of({"a": "good" * 99, "b": "b"})
    for damaged in (content[:40], content[:35] + b"???" + content[38:], b""):
        archive.write_bytes(damaged)
        with pytest.raises(cli.UserError, match="a.zip.*remove it"):
            download_coco.unpack(str(archive), str(tmp_path / "data"), ["a"])
        assert not os.path.exists(str(tmp_path / "data" / "a"))


# fetch

BODY = bytes(range(256)) * 40
MD5 = hashlib.md5(BODY).hexdigest()


def fetched(server, tmp_path, **kwargs):
    """Fetch BODY. Returns what arrived, and the ranges requested."""
    server.files["f"] = BODY
    path = tmp_path / "f"
    assert download_coco.fetch(server.url + "/f", str(path), **kwargs)
    assert os.listdir(str(tmp_path)) == ["f"]
    return path.read_bytes(), server.asked_for("f")


@pytest.mark.fault("downloads that fail")
def test_a_cut_connection_is_resumed_in_the_same_run(server, tmp_path):
    server.cuts["f"] = [1000, 500]
    assert fetched(server, tmp_path, md5=MD5) == (BODY,
                                                  [None, "bytes=1000-", "bytes=1500-"])


@pytest.mark.fault("downloads that fail")
def test_what_an_earlier_run_left_is_resumed(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(BODY[:777])
    assert fetched(server, tmp_path, md5=MD5, size=len(BODY)) == (BODY, ["bytes=777-"])


@pytest.mark.fault("downloads that fail")
def test_a_partial_file_that_is_whole_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(BODY)
    assert fetched(server, tmp_path, md5=MD5, size=len(BODY)) == (BODY, [])


@pytest.mark.fault("downloads that fail")
def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / "f.partial").write_bytes(b"x" * 777)
    assert fetched(server, tmp_path, md5=MD5) == (BODY, ["bytes=777-"])


@pytest.mark.fault("downloads that fail")
def test_a_partial_file_that_is_too_long_starts_over(server, tmp_path):
    (tmp_path / "f.partial").write_bytes(BODY + b"x")
    start = f"bytes={len(BODY) + 1}-"
    assert fetched(server, tmp_path, md5=MD5) == (BODY, [start, None])


@pytest.mark.fault("downloads that fail")
def test_a_server_that_falls_silent_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_coco, "TIMEOUT", .2)
    server.files["f"] = b"hello"
    server.delays["f"] = [1.5]
    path = str(tmp_path / "f")
    assert download_coco.fetch(f"{server.url}/f", path)
    assert server.asked_for("f") == [None, None]
    server.delays["g"] = [1.5] * 3
    with pytest.raises(cli.UserError, match="(?i)timed out"):
        download_coco.fetch(f"{server.url}/g", str(tmp_path / "g"))


@pytest.mark.fault("downloads that fail")
def test_a_redirect_is_followed(server, tmp_path):
    server.files["new/place"] = b"hello"
    server.redirects["f"] = "new/place"
    path = str(tmp_path / "f")
    assert download_coco.fetch(f"{server.url}/f", path, size=5)
    with open(path, "rb") as file:
        assert file.read() == b"hello"


@pytest.mark.fault("downloads that fail")
def test_redirects_in_a_circle_are_a_user_error(server, tmp_path):
    server.redirects.update(f="g", g="f")
    with pytest.raises(cli.UserError, match="redirects"):
        download_coco.fetch(f"{server.url}/f", str(tmp_path / "f"))


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("tells_length", [True, False])
def test_a_page_of_a_captive_portal_is_not_taken_for_the_archive(tells_length, download,
                                                                 coco, data):
    """But the real archive is accepted once one has logged in."""
    real, coco.files[ANNOTATIONS] = coco.files[ANNOTATIONS], b"<html>Log in</html>"
    coco.tells_length = tells_length
    with pytest.raises(cli.UserError, match=ANNOTATIONS):
        download("--num-images", 2)
    assert not os.path.exists(os.path.join(data, "archives",
                                           os.path.basename(ANNOTATIONS)))
    coco.files[ANNOTATIONS], coco.tells_length = real, True
    try:
        download("--num-images", 2)
    except cli.UserError as error:  # the page has been set aside
        assert ".bad" in str(error) and not tells_length
        download("--num-images", 2)
    assert len(read_captions(data, "train2014")) == 2


@pytest.mark.fault("downloads that fail")
def test_an_archive_with_two_files_of_one_name_is_refused(tmp_path):
    path = str(tmp_path / "a.zip")
    with zipfile.ZipFile(path, "w") as zipped, pytest.warns(UserWarning):
        zipped.writestr("a", "one")
        zipped.writestr("a", "other")
    with pytest.raises(cli.UserError, match="two files of one name"):
        download_coco.unpack(path, str(tmp_path / "out"), ["a"])
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.fault("downloads that fail")
def test_a_passing_server_error_is_tried_again(server, tmp_path):
    server.statuses["f"] = [503, 500]
    assert fetched(server, tmp_path) == (BODY, [None, None, None])


@pytest.mark.fault("downloads that fail")
def test_attempts_that_bring_nothing_are_bounded(server, tmp_path):
    server.files["f"], server.cuts["f"] = BODY, [1000] + [0] * 9
    with pytest.raises(cli.UserError, match="/f: the connection ended after 1000 of"):
        download_coco.fetch(server.url + "/f", str(tmp_path / "f"))
    assert (tmp_path / "f.partial").read_bytes() == BODY[:1000]
    assert len(server.requests) == 1 + len(download_coco.PAUSES)


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_tried_again(server, tmp_path, status):
    server.statuses["f"] = [status]
    with pytest.raises(cli.UserError, match=f"{server.url}/f: HTTP status {status}"):
        download_coco.fetch(server.url + "/f", str(tmp_path / "f"))
    assert len(server.requests) == 1 and os.listdir(str(tmp_path)) == []


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/f", "no address"])
def test_no_server_is_a_user_error(server, tmp_path, url):
    with pytest.raises(cli.UserError, match=url):
        download_coco.fetch(url, str(tmp_path / "f"))


@pytest.mark.parametrize("progress, tries", [(True, 1), (False, 3)])
def test_no_connection_to_the_net_is_told_at_once_in_a_few_words(
        progress, tries, tmp_path, monkeypatch, capsys):
    asked = []

    def offline(*args):
        asked.append(args)
        raise socket.gaierror(-3, "Temporary failure in name resolution")
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(download_coco, "PAUSES", (0, 0))
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(cli.UserError) as found:
        download_coco.fetch("http://images.example/f", str(tmp_path / "f"),
                            progress=progress)
    assert str(found.value).startswith(
        "http://images.example/f: no such server, or no connection to the net "
        "(Temporary failure in name resolution); what has arrived")
    assert len(asked) == tries and capsys.readouterr().err == ""


def test_attempts_are_told_without_the_layers_of_the_library(server, tmp_path, capsys):
    with pytest.raises(cli.UserError) as found:
        download_coco.fetch("http://127.0.0.1:1/f", str(tmp_path / "f"), progress=True)
    lines = capsys.readouterr().err.splitlines() + [str(found.value)]
    assert len(lines) == 3 and all("/f: Connection refused; " in line for line in lines)


# The readers

@pytest.fixture
def small(data):
    """A split "s" of three images, with two captions, none and one."""
    os.makedirs(os.path.join(data, "annotations"))
    captions = {"images": [{"id": 5, "file_name": "b.jpg"},
                           {"id": "x", "file_name": "a.jpg"},
                           {"id": 2, "file_name": "sub/c.jpg"}],
                "annotations": [{"image_id": 2, "caption": "Two."},
                                {"image_id": 5, "caption": "first\n"},
                                {"image_id": 5, "caption": "a second"}]}
    instances = {"images": [{"id": 5, "width": 9, "height": 8}],
                 "categories": [{"id": 1, "name": "dog"}],
                 "annotations": [{"image_id": 5, "category_id": 1,
                                  "bbox": [1, 2.5, 3, 4]}]}
    for kind, content in (("captions", captions), ("instances", instances)):
        with open(os.path.join(data, "annotations", f"{kind}_s.json"), "w") as file:
            json.dump(content, file)
    return data


def test_images_and_captions_keep_their_order_and_text(small):
    assert read_captions(small, "s") == [
        (5, "b.jpg", ["first\n", "a second"], "s"), ("x", "a.jpg", [], "s"),
        (2, "sub/c.jpg", ["Two."], "s")]
    assert read_captions(small, "s")[2].path == "s/sub/c.jpg"


def test_captions_of_no_image_are_skipped_with_one_warning(small, capsys):
    change(small, "captions_s.json", lambda content: content["annotations"].extend(
        [{"image_id": 77, "caption": "?"}, {"image_id": "y", "caption": "?"}]))
    images = read_captions(small, "s")
    assert [len(image.captions) for image in images] == [2, 0, 1]
    assert re.fullmatch(r"warning: \S+captions_s.json: skipped 2 captions .*\n",
                        capsys.readouterr().err)


@pytest.mark.parametrize("edit", [
    lambda content: content.pop("images"),
    lambda content: content.update(annotations={}),
    lambda content: content["images"].append(7),
    lambda content: content["images"][1].pop("id"),
    lambda content: content["images"][1].update(id=True),
    lambda content: content["images"][1].update(id=5),
    lambda content: content["images"][1].update(file_name=None),
    lambda content: content["images"][1].update(file_name="../a.jpg"),
    lambda content: content["images"][1].update(file_name="/a.jpg"),
    lambda content: content["images"][1].update(file_name=""),
    lambda content: content["annotations"][0].pop("image_id"),
    lambda content: content["annotations"][0].pop("caption"),
    lambda content: content["annotations"][0].update(caption=["two"]),
])
def test_bad_captions_are_a_user_error_that_names_the_file(small, edit):
    change(small, "captions_s.json", edit)
    with pytest.raises(cli.UserError, match="captions_s.json: .*My own data"):
        read_captions(small, "s")


@pytest.mark.parametrize("text", [b"", b'{"images": [', b"[]", b"\xff", b"[" * 99999])
def test_a_file_that_is_not_whole_json_is_a_user_error(small, text):
    for kind, reader in (("captions", read_captions),
                         ("instances", read_boxes)):
        with open(os.path.join(small, "annotations", f"{kind}_s.json"), "wb") as file:
            file.write(text)
        with pytest.raises(cli.UserError, match=f"{kind}_s.json: "):
            reader(small, "s")


def test_a_data_set_may_have_no_boxes(small):
    assert read_boxes(small, "s") == {
        5: ((9, 8), [("dog", (1, 2.5, 3, 4))])}
    os.remove(os.path.join(small, "annotations", "instances_s.json"))
    assert read_boxes(small, "s") is None


@pytest.mark.parametrize("field, value", [
    ("bbox", [1, 2, 3]), ("bbox", "1234"), ("bbox", [1, 2, 3, None]),
    ("bbox", [1, 2, 3, float("nan")]), ("category_id", 2), ("image_id", None),
    ("image_id", 6)])
def test_bad_boxes_are_a_user_error(small, field, value):
    change(small, "instances_s.json",
           lambda content: content["annotations"][0].update({field: value}))
    with pytest.raises(cli.UserError, match="instances_s.json: "):
        read_boxes(small, "s")


def test_splits_are_those_with_captions(small):
    for name in ("captions_r.json", "captions_t.json.partial", "instances_u.json"):
        open(os.path.join(small, "annotations", name), "w").close()
    assert splits(small) == ["r", "s"]


def test_a_folder_without_a_data_set_is_a_user_error(tmp_path):
    with pytest.raises(cli.UserError, match=f"{tmp_path}.*My own data"):
        splits(str(tmp_path))
    with pytest.raises(cli.UserError, match="captions_s.json: no such file"):
        read_captions(str(tmp_path), "s")


def test_the_command_ends_with_one_line_and_status_2(server, data):
    server.files[ANNOTATIONS] = b"not COCO"
    result = subprocess.run(
        [sys.executable, "download_coco.py", "--data", data, "--mirror", server.url,
         "--num-images", "1"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True)
    assert result.returncode == 2
    assert re.fullmatch(
        r"download_coco.py: http://\S+: has 8 bytes, not 252872794; .*\n",
        result.stderr)
