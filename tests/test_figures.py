"""What attention figures promise: maps in the right place, for any input."""
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from captioning import figures
from captioning.figures import COLOURS, draw, lay_out, lightened, overlay, upsample
from captioning.grid import Axis, Grid, even
from captioning.names import boxes_of
from captioning.pictures import (load_picture, read_square, titles, upright,
                                 upright_boxes)
from commands import ROOT
from runtime import cli
from worlds import noise, some_alphas

SIZES = [(299, 299), (640, 100), (100, 640), (37, 90), (8, 8)]  # width, height


# --- maps -----------------------------------------------------------------------------

@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", [(0, 0), (0, 7), (7, 0), (7, 7), (2, 5), (5, 2),
                                  (0, 3), (4, 4)])
def test_peak_of_the_map_is_in_the_cell_that_was_looked_at(size, cell):
    row, column = cell
    alpha = np.full(64, .2 / 63, np.float32)
    alpha[row * 8 + column] = .8
    heat = upsample(alpha, size)
    width, height = size
    assert heat.shape == (height, width) and heat.dtype == np.float32
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert row * height / 8 <= y + .5 <= (row + 1) * height / 8
    assert column * width / 8 <= x + .5 <= (column + 1) * width / 8


@pytest.mark.parametrize("size", SIZES)
def test_map_lies_between_zero_and_one(size):
    for alpha in some_alphas(3):
        heat = upsample(alpha, size)
        assert heat.min() >= 0 and heat.max() == 1


def test_even_attention_is_one_everywhere():
    np.testing.assert_allclose(upsample(np.full(64, 1 / 64), (50, 31)), 1, rtol=1e-5)


def test_map_falls_off_with_the_distance_from_its_peak():
    alpha = np.zeros(64, np.float32)
    alpha[3 * 8 + 2] = 1
    heat = upsample(alpha, (160, 80))  # cells of 20 x 10
    line = heat[35, 50:]                  # from the middle of the cell to the right
    assert (np.diff(line) <= 1e-6).all() and line[0] > .9 and line[40] < .05


def test_map_of_another_grid_is_drawn_too():
    alpha = np.zeros(9)
    alpha[5] = 1  # second row, last column
    y, x = np.unravel_index(upsample(alpha, (60, 33)).argmax(), (33, 60))
    assert 11 <= y < 22 and 40 <= x < 60


def test_grids_that_are_not_square_are_drawn():
    alpha = np.zeros(15)
    alpha[4] = 1  # of 3 rows and 5 columns: first row, last column
    heat = upsample(alpha, (50, 30), even(3, 5))
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.shape == (30, 50) and y < 10 and x >= 40
    with pytest.raises(ValueError):
        upsample(alpha, (50, 30), even(5, 5))


def test_picture_is_bright_where_the_model_looked_and_dark_elsewhere():
    picture = np.full((3, 5, 3), 120, np.uint8)
    heat = np.zeros((3, 5), np.float32)
    heat[1, 4] = 1
    seen = overlay(picture, heat)
    assert seen.shape == picture.shape and seen.dtype == np.uint8
    assert (seen[1, 4] >= 120).all()
    dark = seen[heat == 0]
    assert (dark < 60).all() and (dark > 0).all()
    assert (overlay(np.full((1, 1, 3), 255, np.uint8), np.ones((1, 1))) == 255).all()


def test_dark_pictures_are_lightened_below_a_map():
    picture = np.random.RandomState(0).randint(0, 40, (20, 30, 3)).astype(np.uint8)
    heat = np.zeros((20, 30), np.float32)
    heat[:, :15] = 1
    seen = overlay(lightened(picture), heat).astype(int)
    looked, rest = seen[:, :15], seen[:, 15:]
    assert looked.mean() - rest.mean() > 60
    assert picture[:, :15].mean() - .25 * picture[:, 15:].mean() < 20  # without it
    order = np.argsort(picture[:, 15:].ravel(), kind="mergesort")
    assert (np.diff(rest.ravel()[order]) >= 0).all()  # no tone is lost
    black = np.zeros((2, 2, 3), np.uint8)
    assert not overlay(lightened(black), np.zeros((2, 2))).any()
    figure = lay_out(picture, ["a"], np.ones((1, 4)), None, "grid", "light", None)
    whole, below = (axes.images[0].get_array() for axes in figure.axes)
    assert (whole == picture).all()
    assert (below == overlay(lightened(picture), np.ones((20, 30)))).all()


# --- pictures -------------------------------------------------------------------------

@pytest.mark.parametrize("size, shape", [
    ((640, 100), (75, 480, 3)), ((100, 640), (480, 75, 3)), ((3, 2), (320, 480, 3)),
    ((2000, 1), (1, 480, 3))])
def test_picture_keeps_its_proportions(size, shape, tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(noise(*size)).save(path)
    assert load_picture(path, 480).shape == shape


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_picture_of_any_mode_is_loaded(mode, tmp_path):
    path = str(tmp_path / "a.tif")
    Image.new(mode, (30, 20)).save(path)
    picture = load_picture(path, 480)
    assert picture.shape == (320, 480, 3) and picture.dtype == np.uint8


def test_picture_is_drawn_as_the_network_sees_it(tmp_path):
    hidden = Image.new("RGBA", (48, 48), (200, 0, 0, 0))   # red, wholly transparent
    deep = np.tile(np.linspace(0, 65535, 48), (48, 1)).astype(np.uint16)
    for i, picture in enumerate((hidden, Image.fromarray(deep))):
        path = str(tmp_path / f"{i}.png")
        picture.save(path)
        drawn, seen = load_picture(path, 48), read_square(path, 48)
        assert abs(drawn.astype(int) - seen).max() <= 1
        assert (drawn == 255).all() if i == 0 else np.ptp(drawn) > 250


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_missing_or_unreadable_picture_is_refused_by_name(content, tmp_path):
    path = str(tmp_path / "a.png")
    if content is not None:
        with open(path, "wb") as file:
            file.write(content)
    with pytest.raises(cli.UserError) as error:
        load_picture(path, 480)
    assert str(error.value).startswith(path)


# --- figures --------------------------------------------------------------------------

def drawn(path):
    """The pixels of a figure, fully decoded."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [(64, 48), (640, 100), (100, 640), (480, 1)])
@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_figure_is_drawn_for_any_caption_and_picture(size, count, tmp_path):
    path = str(tmp_path / "folder" / "a.png")
    words = ["giraffe"] * count
    draw(noise(*size), words, some_alphas(count), path)
    pixels = drawn(path)
    assert (pixels != 255).mean() > .005         # it is not empty,
    assert (pixels[:4] == 255).all()             # and the caption is not cut off
    assert os.listdir(str(tmp_path / "folder")) == ["a.png"]


def test_figure_has_a_row_for_every_five_pictures(tmp_path):
    heights = []
    for count in (3, 4, 5, 9, 10):
        path = str(tmp_path / "a.png")
        draw(noise(40, 40), ["a"] * count, some_alphas(count), path)
        heights.append(drawn(path).shape[0])
    assert heights[0] == heights[1] < heights[2] == heights[3] < heights[4]


@pytest.mark.parametrize("words", [
    ["$"], ["$x", "y$"], ["$$", "\\frac"], ["<start>", "a<b", "&", "%"], ["{_^}"],
    ["$\\undefined$"], ["a" * 60], ["\u00e4pfel", "\u4e00"]])
def test_signs_that_mean_something_to_matplotlib_are_only_text(words, tmp_path):
    path = str(tmp_path / "a.png")
    draw(noise(50, 40), words, some_alphas(len(words)), path)
    plain = str(tmp_path / "b.png")
    draw(noise(50, 40), [" "] * len(words), some_alphas(len(words)), plain)
    assert not np.array_equal(drawn(path), drawn(plain))


def test_figure_shows_the_attention_it_was_given(tmp_path):
    pixels = []
    for cell in (0, 63, 0):
        alphas = np.zeros((1, 64), np.float32)
        alphas[0, cell] = 1
        path = str(tmp_path / "a.png")
        draw(np.full((60, 60, 3), 200, np.uint8), ["cat"], alphas, path)
        pixels.append(drawn(path).astype(int))
    first, last, again = pixels
    assert (first == again).all()
    changed = (first != last).any(2).nonzero()[1]
    assert changed.min() > first.shape[1] * .45  # the map, not the picture beside it


@pytest.mark.parametrize("kind, begin", [("png", b"\x89PNG"), ("pdf", b"%PDF"),
                                         ("svg", b"<?xml")])
def test_figure_of_any_format_is_the_same_file_each_time(kind, begin, tmp_path):
    contents = []
    for name in "ab":
        path = str(tmp_path / f"{name}.{kind}")
        draw(noise(30, 20), ["a", "cat"], some_alphas(2), path, ["p 0.5", "p 1"])
        with open(path, "rb") as file:
            contents.append(file.read())
    assert contents[0].startswith(begin) and contents[0] == contents[1]


def test_strip_is_one_row_and_notes_need_room(tmp_path):
    sizes = []
    for name, options in (("grid", {}), ("strip", {"layout": "strip"}),
                          ("notes", {"notes": ["p 0.12"] * 9})):
        path = str(tmp_path / f"{name}.png")
        draw(noise(40, 40), ["a"] * 9, some_alphas(9), path, **options)
        sizes.append(drawn(path).shape[:2])
    grid, strip, notes = sizes
    assert strip[0] < grid[0] < notes[0] and strip[1] == 2 * grid[1]


def test_strip_of_any_length_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "LONGEST", 700)  # pixels, in place of matplotlib's
    path = str(tmp_path / "a.png")
    draw(noise(40, 40), ["a"] * 9, some_alphas(9), path, layout="strip")
    assert 600 < drawn(path).shape[1] <= 700


@pytest.mark.parametrize("colours", COLOURS)
def test_map_in_other_colours_still_shows_where_the_peak_is(colours):
    heat = np.zeros((4, 6), np.float32)
    heat[1, 2] = 1
    seen = overlay(np.full((4, 6, 3), 120, np.uint8), heat, colours).astype(int)
    elsewhere = seen[heat == 0]
    assert (elsewhere == elsewhere[0]).all() and (seen[1, 2] != elsewhere[0]).any()


def test_no_display_and_no_backend_are_needed(tmp_path):
    path = str(tmp_path / "a.png")
    environment = dict(os.environ, MPLBACKEND="TkAgg", PYTHONPATH=ROOT)
    environment.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, numpy, plot_attention as p\n"
         "p.draw(numpy.zeros((9, 12, 3), 'u1'), ['a'], numpy.eye(64)[:1], sys.argv[1])",
         path], env=environment, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    assert drawn(path).size


def test_no_two_pictures_share_a_figure():
    assert titles(["a.png", "in/b.jpg"]) == ["a", "b"]
    assert titles(["val/a.1.png", "val/a.1.png"]) == ["a.1", "a.1"]
    paths = ["x/p.png", "x/p.jpg", "q.png", "p.png", "../p.png", "x_p.png"]
    assert titles(paths) == ["x_p.png", "x_p.jpg", "q", "p.png", ".._p.png", "x_p"]
    assert titles(["a/p.png", "b/p.png", "a_p.png.x"]) == [
        "a_p.png", "b_p.png", "a_p.png_"]


# --- where the cells are --------------------------------------------------------------

INCEPTION = Grid(*[Axis(37.5 / 299, 32 / 299, 8)] * 2)


@pytest.mark.parametrize("cell", [(0, 0), (0, 7), (7, 3), (4, 4)])
def test_cell_of_inception_is_drawn_at_its_middle(cell):
    alpha = np.full(64, .001, np.float32)
    alpha[8 * cell[0] + cell[1]] = 1
    heat = upsample(alpha, (598, 299), INCEPTION)
    mass = heat ** 8  # around the peak; outermost cells extend to the rim
    y, x = (np.average(np.arange(n) + .5, weights=mass.sum(axis=1 - axis))
            for axis, n in enumerate(heat.shape))
    for found, place, side in ((y, cell[0], 299), (x, cell[1], 598)):
        middle = (37.5 + 32 * place) / 299 * side
        if 0 < place < 7:
            assert abs(found - middle) < .02 * side
        else:  # extended to the rim
            assert abs(found - middle) < .08 * side


# --- boxes ----------------------------------------------------------------------------

def test_boxes_lie_over_the_picture_and_over_the_maps_of_the_words_that_name_them():
    dog, cat = ("dog", (0, 0, 40, 20)), ("cat", (40, 20, 40, 20))
    found = boxes_of("a dog and two cats".split(), (80, 40), [dog, cat])
    assert found == [[(0, 0, .5, .5), (.5, .5, .5, .5)], [], [(0, 0, .5, .5)], [], [],
                     [(.5, .5, .5, .5)]]


def test_box_is_drawn_around_its_thing():
    picture = np.zeros((80, 120, 3), np.uint8)
    figure = lay_out(picture, ["dog"], some_alphas(1), None, "grid", "light", None,
                     [[(.25, .5, .5, .25)], []])
    whole, word = figure.axes
    box, = whole.patches
    np.testing.assert_allclose(box.get_bbox().bounds, (29.5, 39.5, 60, 20))
    assert not word.patches


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_turned_as_the_picture_is(orientation, tmp_path):
    path, picture = str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8)
    picture[5:15, 10:40] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    (width, height), [(name, box)] = upright_boxes(path, (60, 40),
                                                   [("thing", (10, 5, 30, 10))])
    seen = np.asarray(upright(path))[..., 0]
    assert seen.shape == (height, width) and name == "thing"
    x, y, w, h = box
    assert (seen[y:y + h, x:x + w] == 255).all() and seen.sum() == 255 * w * h == 76500


def test_boxes_of_a_picture_that_is_annotated_upright_stay(tmp_path):
    path, exif = str(tmp_path / "a.png"), Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    objects = [("thing", (10, 5, 30, 10))]
    assert upright_boxes(path, (40, 60), objects) == ((40, 60), objects)
    assert upright_boxes(str(tmp_path / "none.png"), (60, 40), objects)[1] == objects
