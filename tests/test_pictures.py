"""Unusual pictures are seen as people see them, or named in a message."""
import sys
import types

import numpy as np
import pytest
from PIL import Image

from captioning.pictures import Unreadable, load_picture, upright, upright_boxes
from runtime import cli

PHOTO = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"x" * 40  # begins like a phone's HEIC


@pytest.mark.parametrize("values, seen", [
    ([0, .5, 1], [0, 128, 255]), ([0, .25, .5], [0, 64, 128]),
    ([0, 100, 255], [0, 100, 255]), ([0, 2047, 4095], [0, 127, 255]),
    ([np.nan, .5, 1], [0, 128, 255]), ([-1, 0, np.inf], [0, 0, 0])])
def test_numbers_with_a_point_from_0_to_1_are_shares_of_white(values, seen, tmp_path):
    path = str(tmp_path / "a.tif")
    Image.fromarray(np.array([values], np.float32)).save(path)
    grey = np.asarray(upright(path))
    assert grey.shape == (1, 3, 3) and (grey == grey[:, :, :1]).all()
    assert np.abs(grey[0, :, 0].astype(int) - seen).max() <= 1


def test_whole_numbers_of_0_and_1_stay_as_they_are(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 1, 1]], np.uint16)).save(path)
    assert np.asarray(upright(path)).max() == 1


def test_phone_s_picture_names_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(PHOTO)
    with pytest.raises(Unreadable, match="where the package pillow-heif is installed"):
        upright(str(path))
    with pytest.raises(cli.UserError, match="pillow-heif .*convert it to JPEG or PNG"):
        load_picture(str(path), 10)
    assert upright_boxes(str(path), (4, 2), []) == ((4, 2), [])


def test_phone_s_picture_is_read_where_that_package_is(tmp_path, monkeypatch):
    registered = []

    def register():
        registered.append(1)
        monkeypatch.setattr(Image, "open", lambda path: Image.new("RGB", (6, 4), "red"))
    monkeypatch.setitem(sys.modules, "pillow_heif",
                        types.SimpleNamespace(register_heif_opener=register))
    path = tmp_path / "IMG_1.jpg"  # whatever its name
    path.write_bytes(PHOTO)
    assert upright(str(path)).size == (6, 4) and registered


def test_film_is_no_phone_s_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.mp4"
    path.write_bytes(PHOTO.replace(b"ftypheic", b"ftypisom"))
    with pytest.raises(Unreadable, match="cannot identify"):
        upright(str(path))
