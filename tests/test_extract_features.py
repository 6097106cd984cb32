"""What step 2 promises: any picture, one network, files whole or absent."""
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import extract_features as ef
from captioning import inception, networks
from captioning.features import SHAPE, is_sound, read_features, read_record
from captioning.pictures import Unreadable, read_square
from commands import printed

from runtime import cli
from runtime.tf import tf
from worlds import files_of

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def blocks(count, seed, side=5):
    """Pictures of side x side coloured blocks: uint8 (count, 299, 299, 3)."""
    small = np.random.RandomState(seed).randint(0, 256, (count, side, side, 3))
    return np.kron(small, np.ones((1, 60, 60, 1)))[:, :299, :299].astype(np.uint8)


# --- pictures -------------------------------------------------------------------------

def read_299(path):
    return read_square(path, 299)


def saved(tmp_path, image, name="a.png", **options):
    path = str(tmp_path / name)
    image.save(path, **options)
    return path


def corners(pixels):
    """A pixel well inside each quarter: upper left and right, lower left and right."""
    return [tuple(int(v) for v in pixels[y, x]) for y in (40, 250) for x in (40, 250)]


def is_all(pixels, colour):
    assert pixels.shape == (299, 299, 3) and pixels.dtype == np.uint8
    return (pixels == np.array(colour, np.uint8)).all()


@pytest.mark.parametrize("mode, colour, seen", [
    ("L", 77, (77, 77, 77)), ("1", 1, WHITE), ("RGB", (9, 80, 200), (9, 80, 200)),
    ("LA", (90, 255), (90, 90, 90)), ("LA", (90, 0), WHITE),
    ("RGBA", (9, 80, 200, 255), (9, 80, 200)), ("RGBA", (9, 80, 200, 0), WHITE),
    ("RGBA", (0, 0, 0, 128), (127, 127, 127))])
@pytest.mark.parametrize("size", [(1, 1), (13, 7)])
def test_png_of_any_mode_is_rgb_on_white(mode, colour, seen, size, tmp_path):
    path = saved(tmp_path, Image.new(mode, size, colour))
    assert is_all(read_299(path), seen)


def test_cmyk_is_read_in_its_colours(tmp_path):
    image = Image.new("CMYK", (6, 4), (0, 255, 255, 0))
    assert is_all(read_299(saved(tmp_path, image, "a.tif")), RED)


def test_palette_with_transparency_is_on_white_where_it_is_transparent(tmp_path):
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0] + list(RED) + [0] * 762)
    image.paste(1, (10, 0, 20, 10))
    pixels = read_299(saved(tmp_path, image, transparency=0))
    assert corners(pixels) == [WHITE, RED, WHITE, RED]


@pytest.mark.parametrize("mode, hidden, shown, seen", [
    ("RGB", (0, 0, 9), RED, RED), ("L", 3, 60, (60, 60, 60))])
def test_transparent_colour_of_a_png_without_alpha_is_white(mode, hidden, shown, seen,
                                                            tmp_path):
    image = Image.new(mode, (20, 10), hidden)
    image.paste(shown, (10, 0, 20, 10))
    pixels = read_299(saved(tmp_path, image, transparency=hidden))
    assert corners(pixels) == [WHITE, seen, WHITE, seen]


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    grey = np.zeros((10, 20), np.uint16)
    grey[:, 10:] = 65535
    grey[5:, 10:] = 128 * 256
    pixels = read_299(saved(tmp_path, Image.fromarray(grey)))
    assert corners(pixels) == [(0, 0, 0), WHITE, (0, 0, 0), (128, 128, 128)]


def exif(orientation):
    """EXIF with one entry, the orientation."""
    return (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
            + bytes([0, orientation]) + b"\0\0\0\0\0\0")


@pytest.mark.parametrize("orientation, upright", [
    (1, "rgbw"), (3, "wbgr"), (6, "brwg"), (8, "gwrb")])
def test_picture_turned_by_exif_is_upright(orientation, upright, tmp_path):
    colours = {"r": RED, "g": (0, 255, 0), "b": BLUE, "w": WHITE}
    image = Image.new("RGB", (64, 32))
    for i, key in enumerate("rgbw"):
        x, y = i % 2 * 32, i // 2 * 16
        image.paste(colours[key], (x, y, x + 32, y + 16))
    path = saved(tmp_path, image, "a.jpg", quality=100, subsampling=0,
                 exif=exif(orientation))
    seen = np.array(corners(read_299(path)))
    assert abs(seen - [colours[key] for key in upright]).max() < 4


def test_whole_picture_is_seen_and_not_only_its_middle(tmp_path):
    image = Image.new("RGB", (400, 30), RED)
    image.paste(BLUE, (40, 0, 400, 30))  # a tenth on the left stays red
    pixels = read_299(saved(tmp_path, image))
    assert (pixels[:, :25] == RED).all() and (pixels[:, 35:] == BLUE).all()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_raises_what_the_callers_catch(content, tmp_path):
    path = str(tmp_path / "a.png")
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(Unreadable):
        read_299(path)


# --- the network ----------------------------------------------------------------------

class Network:
    """An InceptionV3 with random weights, their file, and some outputs."""

    def __init__(self, folder):
        tf.keras.backend.clear_session()
        self.model = inception.architecture()
        inception.random_weights(self.model, 1)
        self.sample = blocks(3, seed=0)
        self.calibration = str(folder / "calibration.npz")
        self.mean, self.std = inception.calibrate(self.model, lambda: self.sample,
                                                  self.calibration)
        self.raw = self(self.sample)
        random = np.random.RandomState(2)
        for norm in inception._in_order(self.model, tf.keras.layers.BatchNormalization):
            norm.beta.assign(random.normal(0, .3, norm.beta.shape.as_list()))
        self.h5 = str(folder / "my.weights.h5")  # the suffix that Keras 3 demands
        self.model.save_weights(self.h5)
        self.pictures = blocks(2, seed=3)
        self.features = self(self.pictures)

    def __call__(self, pixels):
        """The network as Keras computes it, with batch norms."""
        x = tf.constant(pixels.astype(np.float32) / 127.5 - 1)
        return self.model(x, training=False).numpy()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return Network(tmp_path_factory.mktemp("network"))


def same(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    return abs(a - b).max() < tolerance * abs(b).max()


def test_folded_network_is_the_network(network):
    folded = inception.fold_batch_norm(network.model)
    assert not any(isinstance(layer, tf.keras.layers.BatchNormalization)
                   for layer in folded.layers)
    x = tf.constant(network.pictures.astype(np.float32) / 127.5 - 1)
    assert network.features.shape == (2,) + SHAPE and network.features.std() > .1
    assert same(folded(x).numpy(), network.features)
    assert not same(network.features[:1], network.features[1:], .1)


def test_weights_of_a_file_give_the_features_of_the_model_that_saved_them(network):
    forward = inception.inception(network.h5)
    for pixels in (network.pictures, network.pictures[1:]):  # batches of two sizes
        features = forward(tf.constant(pixels)).numpy()
        assert same(features, network.features[-len(pixels):])


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    other = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(2,))])
    path = str(tmp_path / "other.weights.h5")
    other.save_weights(path)
    with pytest.raises(cli.UserError, match="not InceptionV3 weights") as error:
        inception.trained(path)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_random_network_is_standardised_and_comes_back_from_its_file(network):
    def never():
        raise AssertionError("there is a calibration file")

    raw = network.raw.reshape(-1, SHAPE[-1])
    np.testing.assert_allclose(network.mean, raw.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(network.std, raw.std(0) / inception.SPREAD, rtol=1e-3,
                               atol=1e-3)
    forward = inception.inception("random", images=never, seed=1,
                                  statistics=network.calibration)
    features = forward(tf.constant(network.sample)).numpy()
    assert same(features, (network.raw - network.mean) / network.std, 1e-3)
    flat = features.reshape(-1, SHAPE[-1])
    assert abs(flat.mean(0)).max() < .02
    assert abs(flat.std(0) - inception.SPREAD).max() < .01


def test_damaged_calibration_is_refused_in_one_line(network, tmp_path):
    path = str(tmp_path / "calibration.npz")
    with open(network.calibration, "rb") as source, open(path, "wb") as file:
        file.write(source.read()[:5000])
    with pytest.raises(cli.UserError, match="calibration.npz"):
        inception.calibrate(network.model, None, path)


@pytest.mark.parametrize("content", [None, b"not HDF5"])
def test_missing_or_foreign_weights_are_refused_and_name_the_other_choices(content,
                                                                           tmp_path):
    path = str(tmp_path / "w.h5")
    if content:
        with open(path, "wb") as file:
            file.write(content)
    with pytest.raises(cli.UserError, match="--weights random") as error:
        inception.trained(path)
    assert str(error.value).startswith(path)


# --- files ----------------------------------------------------------------------------

def good():
    return np.random.RandomState(0).normal(size=SHAPE).astype(np.float16)


def bytes_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


UNSOUND = {
    "empty": b"", "text": b"hello", "header only": bytes_of(good())[:128],
    "half a header": bytes_of(good())[:50], "half": bytes_of(good())[:131072],
    "last byte missing": bytes_of(good())[:-1],
    "float32": bytes_of(good().astype(np.float32)),
    "another shape": bytes_of(good().reshape(64, 2048)),
    "transposed": bytes_of(good().transpose(2, 0, 1)),
    "pickle": bytes_of(np.array([{}, {}]))}


def test_whole_file_is_sound(tmp_path):
    path = str(tmp_path / "a.npy")
    np.save(path, good())
    assert is_sound(path, SHAPE, np.dtype("float16"))
    np.testing.assert_array_equal(read_features(path),
                                  good().reshape(64, 2048))


@pytest.mark.parametrize("damage", sorted(UNSOUND))
def test_damaged_file_is_not_sound(damage, tmp_path):
    path = str(tmp_path / "a.npy")
    with open(path, "wb") as file:
        file.write(UNSOUND[damage])
    assert not is_sound(path, SHAPE, np.dtype("float16"))
    if damage != "float32":  # readable, but not what was requested
        with pytest.raises(cli.UserError) as error:
            read_features(path, SHAPE)
        assert str(error.value).startswith(path)


def test_missing_file_is_not_sound(tmp_path):
    path = str(tmp_path / "a.npy")
    assert not is_sound(path, SHAPE, np.dtype("float16"))
    with pytest.raises(cli.UserError, match="run extract_features.py"):
        read_features(path)


# --- the command ----------------------------------------------------------------------

class Folder:
    """A small data set on disk, with the command run inside this process."""

    def __init__(self, tmp_path, monkeypatch, capsys):
        self.path, self.capsys, self.monkeypatch = tmp_path, capsys, monkeypatch
        self.asked = []  # the colours of the pictures that reached the network
        monkeypatch.setattr(ef, "start", lambda: None)

    def fill(self, count, split="val"):
        """Write `count` pictures; the i-th has the colour (10 i, 0, 0)."""
        (self.path / split).mkdir()
        (self.path / "annotations").mkdir(exist_ok=True)
        names = [f"{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            Image.new("RGB", (3, 2), (10 * i, 0, 0)).save(
                str(self.path / split / name))
        with open(str(self.path / "annotations" / f"captions_{split}.json"),
                  "w") as file:
            json.dump({"images": [{"id": i, "file_name": name}
                                  for i, name in enumerate(names)],
                       "annotations": []}, file)

    def spoil(self, *names):
        for name in names:
            (self.path / "val" / name).write_bytes(b"no picture")

    def run(self, *flags, forward=None):
        """Run step 2: (exit status, stdout, stderr). Features are the picture's red."""
        def red(pixels):
            values = pixels.numpy()[:, 0, 0, 0]
            self.asked += values.tolist()
            return tf.constant(np.zeros((len(values),) + SHAPE, np.float32)
                               + values[:, None, None, None])

        if forward is None:
            self.monkeypatch.setattr(ef, "build", lambda *args: red)
        self.monkeypatch.setattr(sys, "argv", ["extract_features.py", "--data",
                                               str(self.path)] + list(flags))
        return printed(self.capsys, ef.main)

    def feature(self, name):
        return str(self.path / "features" / "val" / f"{name}.npy")


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    return Folder(tmp_path, monkeypatch, capsys)


def refusal(result):
    """The one line that a command ended with."""
    status, _, errors = result
    lines = [line for line in errors.splitlines()
             if not line.startswith("warning: ") and "image/s" not in line and line]
    assert status == 2 and len(lines) == 1, errors
    assert lines[0].startswith("extract_features.py: ")
    return lines[0]


def test_every_image_of_every_split_gets_its_own_features(folder):
    folder.fill(5)
    folder.fill(2, "train")
    status, out, _ = folder.run("--batch-size", "2")
    assert status == 0 and "python tokenize_captions.py" in out
    for i in range(5):
        array = read_features(folder.feature(f"{i}.png"))
        assert array.dtype == np.float16 and (array == 10 * i).all()
    assert sorted(os.listdir(str(folder.path / "features"))) == [
        "extractor.json", "train", "val"]
    assert sorted(os.listdir(str(folder.path / "features" / "train"))) == [
        "0.png.npy", "1.png.npy"]


def test_real_network_of_a_weights_file_fills_the_folder(network, folder):
    folder.fill(3)
    for name, pixels in zip(("0.png", "2.png"), network.pictures):
        Image.fromarray(pixels).save(str(folder.path / "val" / name))
    assert folder.run("--weights", network.h5, "--dtype", "float32",
                      forward=True)[0] == 0
    for name, features in zip(("0.png", "2.png"), network.features):
        assert same(read_features(folder.feature(name)),
                    features.reshape(64, 2048))
    with open(str(folder.path / "features" / "extractor.json")) as file:
        made = json.load(file)
    assert len(made.pop("digest")) == 64
    assert made == {"dtype": "float32", "seed": 0, "weights": network.h5,
                    "network": "inception-v3", "side": 299, "shape": [8, 8, 2048],
                    "grid": [37.5, 32.]}


def test_damaged_features_are_made_again_and_sound_ones_left_alone(folder):
    folder.fill(5)
    assert folder.run()[0] == 0
    for i in range(5):
        os.utime(folder.feature(f"{i}.png"), (1000, 1000 + i))
    for i, damage in ((1, "half"), (3, "float32")):
        with open(folder.feature(f"{i}.png"), "wb") as file:
            file.write(UNSOUND[damage])
    folder.asked = []
    status, out, _ = folder.run("--batch-size", "2")
    assert status == 0 and "3 of 5 images are done" in out
    assert folder.asked == [0, 10, 20, 30]  # the whole batches that hold them
    for i in range(5):
        assert (read_features(folder.feature(f"{i}.png")) == 10 * i).all()
        if i not in (1, 3):
            assert os.stat(folder.feature(f"{i}.png")).st_mtime == 1000 + i


def test_third_run_has_nothing_to_do(folder):
    folder.fill(3)
    assert folder.run()[0] == folder.run()[0] == 0
    assert folder.asked == [0, 10, 20]


def test_bad_image_among_many_is_skipped_and_listed(folder):
    folder.fill(20)
    folder.spoil("7.png")
    status, out, errors = folder.run("--batch-size", "3")
    assert status == 0 and "1 of 20 images of val are left out" in errors
    assert "val: features of 19 images in " in out
    with open(str(folder.path / "features" / "unreadable_val.txt")) as file:
        listed = file.read().splitlines()
    assert len(listed) == 1 and listed[0].startswith("val/7.png\t") and listed[0][11:]
    assert not os.path.exists(folder.feature("7.png"))
    for i in (6, 8):
        assert (read_features(folder.feature(f"{i}.png")) == 10 * i).all()


def test_list_of_bad_images_goes_when_they_are_mended(folder):
    folder.fill(20)
    folder.spoil("7.png")
    assert folder.run()[0] == 0
    Image.new("RGB", (3, 2), (70, 0, 0)).save(str(folder.path / "val" / "7.png"))
    folder.asked = []
    assert folder.run("--batch-size", "1")[0] == 0 and folder.asked == [70]
    assert not os.path.exists(str(folder.path / "features" / "unreadable_val.txt"))


@pytest.mark.parametrize("flags, status", [
    ((), 2), (("--max-bad", ".09"), 2), (("--max-bad", ".1"), 0)])
def test_more_bad_images_than_allowed_end_the_run(flags, status, folder):
    folder.fill(20)
    folder.spoil("7.png", "11.png")
    result = folder.run(*flags)
    assert result[0] == status
    if status:
        assert "2 of 20 images of val, more than" in refusal(result)
    assert os.path.exists(folder.feature("19.png"))  # the good ones are kept


def test_missing_image_is_a_bad_one(folder):
    folder.fill(3)
    os.remove(str(folder.path / "val" / "1.png"))
    assert "1.png: no such file, nor 0 others of the 3 images" in refusal(folder.run())
    assert folder.run("--max-bad", ".5")[0] == 0


def test_features_too_large_for_float16_are_not_written(folder):
    folder.fill(3)
    folder.monkeypatch.setattr(ef, "build", lambda *args: lambda pixels: tf.cast(
        pixels[:, :8, :8, :1], tf.float32) * 5000 + tf.zeros((1,) + SHAPE))
    assert folder.run("--max-bad", "1", forward=True)[0] == 0  # 0, 50 000, 100 000
    assert os.path.exists(folder.feature("1.png"))
    assert not os.path.exists(folder.feature("2.png"))
    with open(str(folder.path / "features" / "unreadable_val.txt")) as file:
        assert file.read() == "val/2.png\tits features are not finite in float16\n"


def test_shards_make_what_one_run_makes(folder):
    folder.fill(20)
    folder.spoil("7.png", "19.png")
    flags = ("--batch-size", "3", "--max-bad", "1")
    assert folder.run(*flags)[0] == 0
    whole = files_of(folder.path / "features")
    shutil.rmtree(str(folder.path / "features"))
    shown = []
    for i in (3, 1, 2):
        folder.asked = []
        status, out, _ = folder.run(*flags, "--shard", f"{i}/3")
        assert status == 0
        shown.append(folder.asked)
    # Batches 0, 3 and 6 of 3 pictures are the first shard's
    assert [x / 10 for x in shown[1]] == [0, 1, 2, 9, 10, 11, 18, 0]
    sharded = files_of(folder.path / "features")
    listed = [sharded.pop(f"unreadable_val_{i}_of_3.txt") for i in (1, 3)]
    assert b"".join(listed[::-1]) == whole.pop("unreadable_val.txt")
    assert sharded == whole
    assert folder.run(*flags)[0] == 0   # only bad pictures are left
    assert sorted(name for name in os.listdir(str(folder.path / "features"))
                  if name.startswith("unreadable")) == ["unreadable_val.txt"]


def test_process_of_a_launcher_takes_its_share_and_its_gpu(monkeypatch):
    for name, value in (("SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv("OMPI_COMM_WORLD_" + name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert ef.share_of_process(None) == (3, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(cli.UserError, match="--shard is for processes that"):
        ef.share_of_process((0, 2))


def test_share_of_bad_images_is_that_of_the_shard(folder):
    folder.fill(20)
    folder.spoil("7.png")
    flags = ("--batch-size", "1", "--max-bad", ".1", "--shard")
    assert folder.run(*flags, "1/4")[0] == 0
    assert "1 of 5 images of val, more than" in refusal(folder.run(*flags, "4/4"))


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/", "/4", "a/b", "-1/4",
                                   "1/4/2"])
def test_shard_that_there_cannot_be_is_refused(shard, folder):
    folder.fill(3)
    assert "--shard" in refusal(folder.run("--shard=" + shard))
    assert not os.path.exists(str(folder.path / "features"))


@pytest.mark.parametrize("flags", [("--dtype", "float32"), ("--weights", "random"),
                                   ("--weights", "other.h5"),
                                   ("--precision", "mixed")])
def test_other_features_in_the_same_folder_are_refused(flags, folder, monkeypatch):
    monkeypatch.setattr(ef, "use_precision", lambda precision: None)
    folder.fill(2)
    assert folder.run()[0] == 0
    folder.asked = []
    line = refusal(folder.run(*flags))
    assert "holds features made with" in line and "--features" in line
    assert folder.asked == []
    assert folder.run(*flags, "--features", str(folder.path / "others"))[0] == 0


def test_damaged_record_of_the_network_is_refused_in_one_line(folder):
    folder.fill(2)
    assert folder.run()[0] == 0
    (folder.path / "features" / "extractor.json").write_text("{")
    assert "extractor.json" in refusal(folder.run())


def broken_download(*args, **kwargs):
    raise Exception("URL fetch failure on https://example.org/w.h5:\nNone -- timed out")


def test_failed_download_of_imagenet_weights_names_the_two_other_choices(folder):
    folder.fill(2)
    folder.monkeypatch.setattr(tf.keras.applications, "InceptionV3", broken_download)
    line = refusal(folder.run(forward=True))
    assert "URL fetch failure" in line
    assert "--weights PATH" in line and "--weights random" in line


def test_other_weights_can_be_taken_after_a_failed_download(folder):
    folder.fill(2)
    with folder.monkeypatch.context() as patch:
        patch.setattr(tf.keras.applications, "InceptionV3", broken_download)
        refusal(folder.run(forward=True))
    assert folder.run("--weights", "random")[0] == 0  # as the message said


def test_random_weights_without_any_readable_picture_are_refused(folder):
    folder.fill(2)
    folder.spoil("0.png", "1.png")
    assert "no readable image" in refusal(folder.run("--weights", "random",
                                                     forward=True))


def test_file_of_weights_is_known_by_what_is_in_it(folder):
    folder.fill(2)
    for name, content in (("a.h5", b"1"), ("b.h5", b"1"), ("c.h5", b"2")):
        (folder.path / name).write_bytes(content)
    first, same_again, other = (str(folder.path / f"{c}.h5") for c in "abc")
    assert folder.run("--weights", first)[0] == 0
    assert folder.run("--weights", same_again)[0] == 0
    assert "holds features made with" in refusal(folder.run("--weights", other))
    os.replace(other, first)
    assert "holds features made with" in refusal(folder.run("--weights", first))
    with pytest.raises(cli.UserError, match="no longer the file that made"):
        extractor(str(folder.path / "features"))


# --- one's own pictures ---------------------------------------------------------------

def extractor(features):
    """The network that made the features in a folder."""
    return networks.extractor(read_record(features), features)


def test_extractor_is_the_network_that_filled_the_folder(network, tmp_path):
    (tmp_path / "extractor.json").write_text(json.dumps(
        {"weights": network.h5, "seed": 0, "dtype": "float16"}))
    forward = extractor(str(tmp_path))
    assert same(forward(network.pictures).numpy(), network.features)


@pytest.mark.parametrize("content", [
    None, "", "[]", "{}", '{"weights": "random"}',
    '{"weights": "random", "seed": 0, "dtype": "float16"}'])
def test_folder_that_does_not_name_its_network_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "extractor.json").write_text(content)
    with pytest.raises(cli.UserError, match="extract|damaged"):
        extractor(str(tmp_path))
