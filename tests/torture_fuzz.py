"""Every reader, fed with damaged files: a UserError in one line, or sound content.

Each reader gets FUZZ inputs (10,000), mutated from a whole file: bytes flipped, cut,
doubled, removed, inserted; pictures likewise; and captions in twenty scripts. Not part
of `make test`: `make torture` runs it.
"""
import io
import os
import random
import shutil
import signal
import warnings

import numpy as np
import pytest
from PIL import Image

from captioning import models, runs
from captioning.checkpoints import load_checkpoint
from captioning.coco import read_boxes, read_captions, whole_text
from captioning.decoded import read_decoded, read_scores
from captioning.features import SHAPE, is_sound, read_features
from captioning.pictures import Unreadable, read_square
from captioning.scores import plain, with_punctuation
from captioning.tokens import (Vocabulary, read_references, read_tokens,
                               read_vocabulary, split_words, write_vocabulary)
from runtime import cli

FUZZ = int(os.environ.get("FUZZ", "10000"))
SEED = int(os.environ.get("TORTURE_SEED", "0"))
LONGEST = 20  # seconds per input: more is a hang
pytestmark = pytest.mark.fault("mutated files, read")
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e999",
          b"NaN", b"0", b"99999999999999999999", b"\\u0000", b"\t", b"\n", b"\xff",
          b"\x00", b"\x00" * 8, b"\xff" * 4, b"'descr'", b"|O", b"(1,)", b"PK\x03\x04",
          b"../"]


def mutate(content, randomness):
    """Apply one to four changes to some bytes."""
    content = bytearray(content)
    for _ in range(randomness.randint(1, 4)):
        if not content:
            break
        # Half of the changes are near the ends, where formats have their headers
        n = len(content)
        at = (randomness.randrange(n) if randomness.random() < .5 else
              randomness.choice([randomness.randrange(min(n, 200)),
                                 n - 1 - randomness.randrange(min(n, 600))]))
        kind, length = randomness.randrange(6), randomness.choice([1, 1, 2, 8, 64, 500])
        if kind == 0:
            content[at] ^= 1 << randomness.randrange(8)
        elif kind == 1:
            content[at] = randomness.randrange(256)
        elif kind == 2:
            del content[at:at + length]
        elif kind == 3:
            content[at:at] = content[at:at + length]
        elif kind == 4:
            content[at:at] = randomness.choice(TOKENS)
        else:
            del content[at:]
    return bytes(content)


def captions(folder):
    return lambda: read_captions(folder + "/data", "train")


def boxes(folder):
    return lambda: read_boxes(folder + "/data", "train")


def vocabulary(folder):
    return lambda: read_vocabulary(folder + "/data/tokens")


def tokens(folder):
    return lambda: read_tokens(folder + "/data/tokens", "val")


def references(folder):
    return lambda: read_references(folder + "/data/tokens", "val")


def features(folder):
    path = folder + "/data/features/val/scene_000002.png.npy"

    def read():
        sound = is_sound(path, SHAPE)
        try:
            read_features(path)
        except cli.UserError:
            assert not sound, "step 2 would leave alone what step 4 cannot read"
            raise
    return read


def settings(folder):
    return lambda: models.load_run(os.path.join(folder, "checkpoints", "a"))


def weights(folder):
    model = models.load_run(os.path.join(folder, "checkpoints", "a")).model
    return lambda: load_checkpoint(folder + "/checkpoints/a/best.npz", model.weights)


def split(folder):
    return lambda: runs.read_split(folder + "/checkpoints/a")


def attention(folder):
    words = read_vocabulary(folder + "/data/tokens")
    return lambda: read_decoded(folder + "/checkpoints/a", "val", words)


def scored(folder):
    return lambda: read_scores(folder + "/checkpoints/a", "val")


READERS = {"data/annotations/captions_train.json": captions,
           "data/annotations/instances_train.json": boxes,
           "data/tokens/vocabulary.tsv": vocabulary, "data/tokens/val.npz": tokens,
           "data/tokens/references_val.json": references,
           "data/features/val/scene_000002.png.npy": features,
           "checkpoints/a/settings.json": settings, "checkpoints/a/best.npz": weights,
           "checkpoints/a/split.json": split,
           "checkpoints/a/attention_val.npz": attention,
           "checkpoints/a/scores_val.json": scored}


def too_long(signum, frame):
    raise TimeoutError(f"a reader took more than {LONGEST} s")


@pytest.mark.parametrize("name", sorted(READERS))
def test_mutated_file_is_read_or_refused_in_one_line(name, made, tmp_path,
                                                     record_property, monkeypatch):
    folder = str(tmp_path / "w")
    shutil.copytree(str(made), folder)
    monkeypatch.setattr(runs, "RUNS", "")
    monkeypatch.setattr(cli, "warn", lambda message: None)
    read, path = READERS[name](folder), os.path.join(folder, name)
    with open(path, "rb") as file:
        whole = file.read()
    randomness = random.Random(f"{name} {SEED}")
    record_property("faults", FUZZ)
    refused, before = 0, signal.signal(signal.SIGALRM, too_long)
    try:
        for number in range(FUZZ):
            content = mutate(whole, randomness)
            with open(path, "wb") as file:
                file.write(content)
            signal.alarm(LONGEST)
            try:
                with np.errstate(all="ignore"):
                    read()
            except cli.UserError as error:
                refused += 1
                assert "\n" not in cli.one_line(error) and str(error)
            except Exception as error:
                kept = os.path.join(str(tmp_path), f"input_{number}")
                with open(kept, "wb") as file:
                    file.write(content)
                raise AssertionError(f"{error!r} for {kept}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert refused > FUZZ / 10  # the mutations do damage


# --- pictures -------------------------------------------------------------------------

def whole_picture(kind):
    """The bytes of a small picture like those of cameras and the web."""
    buffer = io.BytesIO()
    picture = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    if kind == "JPEG with EXIF":
        exif = Image.Exif()
        exif[0x112], exif[0x10f], exif[0x9003] = 6, "a camera", "2026:01:01 00:00:00"
        picture.save(buffer, "JPEG", exif=exif)
    elif kind == "GIF":
        picture.convert("P").save(buffer, "GIF", save_all=True, append_images=[
            picture.convert("P").rotate(90)])
    elif kind == "PNG":
        picture.convert("RGBA").save(buffer, "PNG")
    else:
        picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.fault("mutated pictures, read")
@pytest.mark.parametrize("kind", ["JPEG", "JPEG with EXIF", "WebP", "PNG", "TIFF",
                                  "GIF", "BMP"])
def test_mutated_picture_is_read_or_skipped(kind, tmp_path, record_property):
    whole, path = whole_picture(kind), str(tmp_path / "picture")
    randomness = random.Random(f"{kind} {SEED}")
    record_property("faults", FUZZ)
    skipped = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow, about odd metadata
        for _ in range(FUZZ):
            content = mutate(whole, randomness)
            with open(path, "wb") as file:
                file.write(content)
            try:
                pixels = read_square(path, 16)
                assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
            except Unreadable as error:
                skipped += 1
                assert str(error) and "\n" not in str(error)
    assert FUZZ / 50 < skipped < FUZZ


# --- captions -------------------------------------------------------------------------

SCRIPTS = {  # the first letter of a block, and how many letters it has
    "Latin": (0x20, 95), "Latin with accents": (0xc0, 400), "Greek": (0x370, 140),
    "Cyrillic": (0x400, 250), "Armenian": (0x530, 90), "Hebrew": (0x591, 100),
    "Arabic": (0x600, 250), "Devanagari": (0x900, 128), "Bengali": (0x980, 128),
    "Tamil": (0xb80, 128), "Thai": (0xe00, 128), "Tibetan": (0xf00, 200),
    "Georgian": (0x10a0, 90), "Hangul": (0xac00, 11000), "Kana": (0x3040, 190),
    "Han": (0x4e00, 20000), "Ethiopic": (0x1200, 380), "Khmer": (0x1780, 128),
    "emoji": (0x1f300, 700), "anything": (0, 0x110000)}


@pytest.mark.fault("captions in twenty scripts")
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_captions_of_any_script_go_into_a_vocabulary_and_come_back(script, tmp_path,
                                                                   record_property):
    first, count = SCRIPTS[script]
    randomness = random.Random(f"{script} {SEED}")
    record_property("faults", FUZZ)
    seen = set()
    for _ in range(FUZZ):
        caption = "".join(randomness.choice((
            " ", "\u0301", "\u200d", "'", ".", chr(first + randomness.randrange(count)),
            chr(first + randomness.randrange(count))))
            for _ in range(randomness.randrange(30)))
        caption = whole_text(caption)
        words = split_words(caption)
        assert split_words(" ".join(words)) == words
        assert not any(any(letter.isspace() for letter in word) for word in words)
        assert " ".join(words) == plain(caption)
        with_punctuation(caption)
        seen.update(words)
    kept = sorted(seen)[:5000]
    write_vocabulary(str(tmp_path), Vocabulary(kept, [0] * (len(kept) + 4)))
    assert read_vocabulary(str(tmp_path)).index_word[4:] == kept
