"""Captions of one's own pictures: from Python, and what is kept of them."""
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from captioning import networks
from captioning.captioner import BATCH, load
from captioning.features import calibration_path
from captioning.figures import notes_of
from captioning.own import caption_own, own_path, pictures_in, read_own
from commands import ROOT
from runtime import cli
from runtime.tf import tf

VAL = [f"data/val/scene_{i:06}.png" for i in range(1, 5)]


@pytest.fixture
def seen(world, monkeypatch):
    """How many pictures went through the network together, batch by batch.

    Its maps are those of the picture's own colour, so that captions differ.
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
    assert not seen  # before the network
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


def test_gate_is_noted_where_there_is_one():
    assert notes_of(np.log([.5, .25]), [.125, 1.]) == ["p 0.50   \u03b2 0.12",
                                                       "p 0.25   \u03b2 1.00"]
    assert notes_of(np.log([.5])) == ["p 0.50"]


# --- folders --------------------------------------------------------------------------

def test_files_of_a_folder_that_are_no_pictures_are_passed_over(tmp_path, monkeypatch,
                                                                capsys):
    monkeypatch.chdir(tmp_path)
    save("own/b.png")
    save("own/in/c.png")
    shutil.copy("own/b.png", "own/without_ending")
    for name in (".DS_Store", "._b.png", "notes.txt", "a.mov", "phone.HEIC", "cut.jpg"):
        (tmp_path / "own" / name).write_bytes(b"\0\1")
    assert pictures_in(["own", "own/b.png", "x.jpg"]) == [
        "own/b.png", "own/cut.jpg", "own/phone.HEIC", "own/without_ending", "x.jpg"]
    assert capsys.readouterr().out == (
        "own: passed over 2 of 6 files, which are no pictures: a.mov, "
        "notes.txt\n")


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
    for place in ("one/test", "two/test", "three"):
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
    assert not seen  # before the work
    with open(own_path("checkpoints/a")) as file:
        assert file.read() == content
