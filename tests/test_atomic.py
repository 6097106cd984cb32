"""A file gets its name only once it is whole."""
import json
import os

import numpy as np
import pytest

from runtime import atomic


@pytest.fixture(params=["new", "old"])
def path(request, tmp_path):
    """Where to write, with and without an existing file."""
    path = str(tmp_path / "a.txt")
    if request.param == "old":
        with open(path, "w") as file:
            file.write("before")
    return path


def content(path):
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return file.read()


def test_name_comes_with_the_last_byte(path):
    before = content(path)
    with atomic.writing(path, "w") as file:
        file.write("after")
        file.flush()
        assert content(path) == before
    assert content(path) == "after" and os.listdir(os.path.dirname(path)) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_body_that_raises_leaves_what_was_there(error, path):
    before = content(path)
    with pytest.raises(error):
        with atomic.writing(path, "w") as file:
            file.write("half")
            raise error()
    assert content(path) == before
    assert not os.path.exists(path + atomic.PARTIAL)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_disk_that_fails_leaves_what_was_there_and_names_the_file(function, path,
                                                                  monkeypatch):
    before, asked = content(path), []

    def fail(*args):
        asked.append(content(path))
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(atomic.os, function, fail)
    with pytest.raises(OSError) as error:
        with atomic.writing(path, "w") as file:
            file.write("after")
    assert asked == [before]  # it failed before it got its name
    assert error.value.filename == path and content(path) == before


def test_bytes_are_on_the_disk_before_the_name_is(path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync",
                        lambda file: [order.append("fsync"), fsync(file)])
    monkeypatch.setattr(atomic.os, "replace",
                        lambda *names: [order.append("replace"), replace(*names)])
    with atomic.writing(path, "w") as file:
        file.write("after")
    assert order == ["fsync", "replace"]


def test_same_arrays_give_the_same_bytes(tmp_path):
    files = []
    for name in ("a", "b"):
        atomic.write_arrays(str(tmp_path / name), {"x": np.arange(5), "y": np.ones(2)})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with atomic.load_arrays(str(tmp_path / "a")) as arrays:
        assert arrays["x"].tolist() == [0, 1, 2, 3, 4]


def test_half_a_letter_comes_back_from_json_as_it_was(tmp_path):
    path = str(tmp_path / "a.json")
    value = {"caf\u00e9 \udcff.jpg": "\ud83d"}
    atomic.write_json(path, value)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert json.loads(text) == value and "caf\u00e9 \\udcff" in text


@pytest.mark.parametrize("fails", [False, True])
def test_what_does_not_belong_any_more_goes_only_when_the_new_is_written(fails,
                                                                         tmp_path):
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    atomic.write_json(old, 1)
    try:
        with atomic.together():
            atomic.remove(old)
            atomic.write_json(new, 2)
            assert os.path.exists(old)
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert os.listdir(str(tmp_path)) == (["old"] if fails else ["new"])


@pytest.mark.parametrize("fails", [False, True])
def test_files_that_belong_together_get_their_names_together(fails, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    atomic.write_json(paths[0], "old")
    try:
        with atomic.together():
            for path in paths:
                atomic.write_json(path, "new")
            assert content(paths[0]) == '"old"\n' and not os.path.exists(paths[1])
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert content(paths[0]) == ('"old"\n' if fails else '"new"\n')
    assert sorted(os.listdir(str(tmp_path))) == ["a.json", "b.json"][:1 if fails else 2]
    atomic.write_json(paths[1], "later")
    assert content(paths[1]) == '"later"\n'
