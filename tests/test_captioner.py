"""Captioning your own pictures: from Python, and the files that are written."""
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from analysis import report
from captioning import networks
from captioning.captioner import BATCH, load
from captioning.coco import read_objects
from captioning.decode import Caption
from captioning.features import calibration_path
from captioning.figures import notes_of
from captioning.own import caption_own, own_path, pictures_in, read_own
from captioning.tokens import END
from commands import ROOT
from runtime import cli
from runtime.tf import tf
from worlds import refused

VAL = [f"data/val/scene_{i:06}.png" for i in range(1, 5)]


@pytest.fixture
def seen(world, monkeypatch):
    """The batch sizes with which pictures go through the network.

    Features depend on a picture's colour, so that captions differ.
    """
    batches = []

    def build(made, *args):
        def forward(pixels):
            batches.append(pixels.shape)
            pixels = tf.constant(pixels, tf.float32)
            shade = tf.reduce_mean(pixels, axis=(1, 2, 3), keepdims=True) / 32
            return shade * tf.ones([len(batches) and int(pixels.shape[0])]
                                   + list(made["shape"]))
        return forward
    monkeypatch.setattr(networks, "build", build)
    assert os.path.exists(calibration_path("checkpoints/a"))
    return batches


def save(path, size=(6, 4), shade=0):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.new("RGB", size, (shade, 200, 90)).save(path)


def test_code_of_the_documentation_captions_and_draws(seen, capsys):
    with open(os.path.join(ROOT, "docs", "faq.md"), encoding="utf-8") as file:
        code, = re.findall(r"```python\n(from captioning.captioner.*?)```", file.read(),
                           re.S)
    shutil.copytree("checkpoints/a", "checkpoints/flickr8k")
    save("photo.jpg")
    names = {}
    exec(code, names)
    caption = names["caption"]
    T = len(caption.words)
    assert caption.alphas.shape == (T, 8, 8) and caption.log_probs.shape == (T,)
    assert capsys.readouterr().out == f"{caption.text} {caption.alphas.shape}\n"
    with Image.open("photo.png") as figure:
        assert figure.format == "PNG"


def test_run_is_found_by_path_and_by_name_from_any_folder(seen, tmp_path, monkeypatch):
    folder = os.path.abspath("checkpoints/a")
    there = os.path.abspath(VAL[0])
    captions = [load("a")(there), load("checkpoints/a/")(there)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    captions.append(load(folder)(there))
    monkeypatch.setattr("captioning.captioner.HERE",
                        os.path.dirname(os.path.dirname(folder)))
    captions.append(load("a")(there))
    assert len({caption.text for caption in captions}) == 1
    with pytest.raises(cli.UserError, match="^nothing: no such run"):
        load("nothing")


def test_network_that_is_too_large_for_the_device_is_told_in_one_line(world,
                                                                      monkeypatch):
    def forward(pixels):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    monkeypatch.setattr(networks, "build", lambda *args: forward)
    with pytest.raises(cli.UserError, match="^out of memory"):
        load("a").many(VAL)


def test_several_pictures_go_through_the_network_together(seen, capsys):
    paths = []
    for i in range(BATCH + 2):
        paths.append(f"own/{i}.png")
        save(paths[-1], shade=5 * i)
    captioner = load("a")
    captions = captioner.many(paths)
    side = captioner.side
    assert seen == [(BATCH, side, side, 3), (2, side, side, 3)]
    assert [caption.path for caption in captions] == paths
    alone = captioner(paths[3])
    assert alone.text == captions[3].text
    np.testing.assert_allclose(alone.alphas, captions[3].alphas, atol=1e-5)
    np.testing.assert_allclose(alone.alphas.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert captioner.many([]) == []


@pytest.mark.parametrize("name, content", [("none.jpg", None), ("bad.jpg", b"bad")])
def test_picture_that_cannot_be_read_is_refused_or_left_out(name, content, seen,
                                                            capsys):
    if content:
        with open(name, "wb") as file:
            file.write(content)
    captioner = load("a")
    with pytest.raises(cli.UserError, match=f"^{name}: "):
        captioner(name)
    with pytest.raises(cli.UserError, match=f"^{name}: "):
        captioner.many([name], skip=True)
    assert not seen  # refused before the network runs
    assert len(captioner.many([VAL[0], name, VAL[1]], skip=True)) == 2
    assert capsys.readouterr().err.count(f"left out: {name}: ") == 1


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_picture_of_any_proportions_is_captioned_and_drawn(size, seen):
    save("odd.png", size)
    load("a")("odd.png").draw("figure.png")
    with Image.open("figure.png") as figure:
        assert min(figure.size) > 50


def test_figure_of_another_kind_is_refused(seen):
    caption = load("a")(VAL[0])
    with pytest.raises(cli.UserError, match="^photo.jpg: .*.png, .pdf or .svg"):
        caption.draw("photo.jpg")


def test_figure_never_replaces_the_picture(seen):
    save("photo.png")
    with open("photo.png", "rb") as file:
        before = file.read()
    caption = load("a")("photo.png")
    with pytest.raises(cli.UserError, match="photo.png: that is the picture itself"):
        caption.draw(os.path.abspath("photo.png"))
    with open("photo.png", "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize("call, line", [
    (lambda captioner: captioner(VAL[0], beam=0), "^beam 0: must be at least 1"),
    (lambda captioner: captioner.many(VAL[0]), f"^{VAL[0]}: one path where a list"),
    (lambda captioner: captioner("data"), "^data: a folder, not a picture")])
def test_misuse_is_told_in_one_line(call, line, seen):
    with pytest.raises(cli.UserError, match=line):
        call(load("a"))
    assert not seen  # refused before the network runs


def test_run_without_its_words_and_weights_is_not_whole(seen):
    os.remove("checkpoints/a/vocabulary.tsv")
    with pytest.raises(cli.UserError, match="vocabulary.tsv: missing.* a whole run"):
        load("a")


def test_caption_prints_without_its_arrays(seen):
    caption = load("a")(VAL[0])
    assert repr([caption]) == f"[OwnCaption({VAL[0]!r}, {caption.text!r})]"


def test_gate_is_noted_where_there_is_one():
    assert notes_of(np.log([.5, .25]), [.125, 1.]) == ["p 0.50   \u03b2 0.12",
                                                       "p 0.25   \u03b2 1.00"]
    assert notes_of(np.log([.5])) == ["p 0.50"]


# --- folders --------------------------------------------------------------------------

def test_files_of_a_folder_that_are_not_pictures_are_skipped(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("own/b.png")
    save("own/in/c.png")
    shutil.copy("own/b.png", "own/without_ending")
    for name in (".DS_Store", "._b.png", "README.md", "notes.txt", "a.mov",
                 "phone.HEIC", "cut.jpg"):
        (tmp_path / "own" / name).write_bytes(b"\0\1")
    assert pictures_in(["own", "own/b.png", "x.jpg"]) == [
        "own/b.png", "own/cut.jpg", "own/phone.HEIC", "own/without_ending", "x.jpg"]
    assert capsys.readouterr().out == (
        "own: skipped 2 of 6 files (not pictures): a.mov, notes.txt\n")
    save("own/README.png")  # a picture, whatever its name
    assert pictures_in(["own"])[0] == "own/README.png"


def test_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pictures_in(["~/x.jpg"]) == [str(tmp_path / "x.jpg")]


@pytest.mark.parametrize("names", [(), (".DS_Store",), ("notes.txt", "a.mov")])
def test_folder_without_pictures_is_refused(names, tmp_path, capsys):
    folder = tmp_path / "own"
    (folder / "inner").mkdir(parents=True)
    for name in names:
        (folder / name).write_text("x")
    with pytest.raises(cli.UserError, match="own: no pictures in that folder"):
        pictures_in([str(folder)])
    assert capsys.readouterr().out == ""


def test_captions_and_figures_of_a_second_folder_take_the_place_of_none(seen):
    captioner, draw = load("a"), {"format": "png"}
    save("one/p.png", shade=10)
    save("two/p.png", shade=250)
    _, (first,) = caption_own(captioner, ["one"], 2, draw)
    with open(first, "rb") as file:
        before = file.read()
    (second,), (figure,) = caption_own(captioner, ["two"], 2, draw)
    assert list(read_own("checkpoints/a")) == ["one/p.png", "two/p.png"]
    assert figure != first and os.path.exists(figure)
    with open(first, "rb") as file:
        assert file.read() == before
    captioner.run.vocabulary.index_word[:] = ["x"] * len(captioner.run.vocabulary)
    (again,), _ = caption_own(captioner, ["two"], 2)
    assert read_own("checkpoints/a")["two/p.png"] == again.text != second.text


def test_captions_for_the_server_are_kept_for_each_folder(seen, capsys):
    captioner = load("a")
    for place in ("one/test", "two/test", "three"):
        save(f"{place}/COCO_000007.png")
    save("three/holiday.png")
    save("four/IMG_20260714_183207.png")  # a phone's, not an id of COCO's
    for place in ("one/test", "two/test", "three", "four"):
        caption_own(captioner, [place], 1)
    written = re.findall("for the COCO server: (.*)", capsys.readouterr().out)
    assert written == ["checkpoints/a/captions_own_test_a_results.json",
                       "checkpoints/a/captions_own_two_test_a_results.json"]
    for path in written:
        with open(path) as file:
            assert [row["image_id"] for row in json.load(file)] == [7]


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}'])
def test_damaged_captions_are_not_written_over(content, seen):
    os.makedirs("checkpoints/a/attention", exist_ok=True)
    with open(own_path("checkpoints/a"), "w") as file:
        file.write(content)
    with pytest.raises(cli.UserError, match="own_captions.json: damaged; delete it"):
        caption_own(load("a"), VAL[:1], 1)
    assert not seen  # refused before any work
    with open(own_path("checkpoints/a")) as file:
        assert file.read() == content


# --- the page -------------------------------------------------------------------------

def page_of(world, *flags):
    """The text of the page that a command writes, and the data of its script."""
    assert world("analysis.report", "--run", "a", "--pictures", *flags) == 0
    newest = max((os.path.join("checkpoints/a", name) for name in
                  os.listdir("checkpoints/a") if name.startswith("report_own_")),
                 key=os.path.getmtime)
    with open(newest, encoding="utf-8") as file:
        text = file.read()
    return text, json.loads(re.search(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_page_has_all_pictures_with_words_to_point_at(world, seen, capsys):
    save("my holiday/a b.png", (60, 40))
    save("my holiday/c.png", (1, 5000), 250)
    text, facts = page_of(world, "my holiday")
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith(
        "open checkpoints/a/report_own_my_holiday.html")
    captioner = load("a")
    for fact, path in zip(facts, ["my holiday/a b.png", "my holiday/c.png"]):
        caption = captioner(path)
        assert fact["name"] == path and fact["words"] == caption.words
        assert len(fact["runs"][0]["maps"]) == len(caption.words)
        figure = f"checkpoints/a/attention/own_{os.path.basename(path)}"
        assert f"{figure}: {caption.text}\n" in out and os.path.exists(figure)
    assert text.count("<article") == text.count("data:image/jpeg;base64,") == 2
    assert "references" not in text.split("<script")[0] and "CIDEr" not in text


def test_page_of_hostile_names_and_captions_is_text(world, seen, monkeypatch):
    path = "<img src=x onerror='hacked=1'>&\".png"
    save(path)
    monkeypatch.setattr("captioning.decode.Decoder.search", lambda *_, **__: [[Caption(
        [4, 5, END], np.zeros(3), np.ones((3, 64), np.float32), None)]])
    with open("checkpoints/a/vocabulary.tsv") as file:
        rows = [line.split("\t") for line in file]
    for i, row in enumerate(rows[5:]):
        row[1] = f"<script>{i}</script>"
    with open("checkpoints/a/vocabulary.tsv", "w") as file:
        file.writelines("\t".join(row) for row in rows)
    text, facts = page_of(world, path, "--no-figures")
    assert facts[0]["name"] == path and "<img src=x" not in text
    assert not re.search(r"<script>\d", text)
    assert facts[0]["words"] == ["<script>0</script>", "<script>1</script>"]
    assert not [name for name in os.listdir("checkpoints/a/attention")
                if name.startswith("own_") and name.endswith(".png")]


def test_page_marks_the_pictures_that_are_strange(world, seen, monkeypatch):
    class Strange:
        pixels = 0

        def strangeness(self, means):
            return np.arange(len(means)) * .99
    monkeypatch.setattr("captioning.captioner.read_familiarity", lambda *_: Strange())
    text, facts = page_of(world, *VAL[:2], "--no-figures")
    assert [fact["strangeness"] for fact in facts] == [0, .99]
    assert text.count("Unlike the training pictures") == 1


def test_page_of_many_pictures_has_smaller_ones(world, seen, monkeypatch):
    monkeypatch.setattr(report, "LONGEST_OWN", (1, 50, 30))
    for paths, width in ((VAL[:1], 50), (VAL[:2], 30)):
        text, _ = page_of(world, *paths, "--no-figures")
        assert text.count(f'width="{width}"') == len(paths)


def test_page_of_a_second_folder_leaves_the_first(world, seen):
    for place in ("one/p", "two/p"):
        save(f"{place}/a.png")
        page_of(world, place, "--no-figures")
    assert {"report_own_one_p.html", "report_own_two_p.html"} <= set(
        os.listdir("checkpoints/a"))


@pytest.mark.parametrize("flags, line", [
    (("x.jpg",), "x.jpg: no such picture"), (("data/empty",), "no pictures in that"),
    ((VAL[0], "--compare", "a"), "--compare"),
    ((VAL[0], "--tokens", "t"), "--tokens")])
def test_page_that_cannot_be_made_is_refused(flags, line, world, capsys):
    os.makedirs("data/empty")
    assert line in refused(world, capsys, "analysis.report", "--pictures", *flags)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("variables, run, path", [
    ((), "flickr8k", "demo/photos"), (("RUN=my run",), "my run", "demo/photos"),
    (("PICTURE=my 'best' \"photo\".jpg",), "flickr8k", "my 'best' \"photo\".jpg"),
    (("PICTURE=-1.jpg",), "flickr8k", "-1.jpg")])
def test_make_photo_takes_any_name(variables, run, path, tmp_path):
    shutil.copy(os.path.join(ROOT, "Makefile"), str(tmp_path))
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    out = subprocess.check_output(
        ["make", "-s", "-o", "env", "photo", f"PY={stub}", *variables],
        cwd=str(tmp_path), universal_newlines=True)
    assert out.splitlines() == ["-m", "analysis.report", "--run", run,
                                f"--pictures={path}"]


def test_photographs_of_the_demo_have_boxes_captions_and_a_licence():
    names = sorted(os.listdir(os.path.join(ROOT, "demo", "photos")))
    names.remove("README.md")
    assert len(names) == 8
    data, images = os.path.join(ROOT, "demo"), [f"photos/{name}" for name in names]
    with open(os.path.join(data, "photos", "README.md"), encoding="utf-8") as file:
        text = file.read()
    ids = [str(int(name[:-4])) for name in names]
    for name, ((width, height), objects) in zip(names,
                                                read_objects(data, images, ids)):
        with Image.open(os.path.join(data, "photos", name)) as picture:
            assert picture.size == (width, height)
        assert objects and f"| `{name}` |" in text
    assert "CC BY 2.0" in text
