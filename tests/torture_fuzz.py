"""Every reader, fed with damaged files: a UserError in one line, or sound content.

FUZZ inputs each (10,000), mutated from a whole file: bytes flipped, cut, doubled, taken
out, put in. Not part of `make test`: `make torture` runs it.
"""
import os
import random
import shutil
import signal

import numpy as np
import pytest

from captioning import runs
from captioning.checkpoints import load_checkpoint
from captioning.coco import read_boxes, read_captions
from captioning.decoded import read_decoded, read_scores
from captioning.features import is_sound, read_features
from captioning.tokens import read_references, read_tokens, read_vocabulary
from runtime import cli

FUZZ = int(os.environ.get("FUZZ", "10000"))
SEED = int(os.environ.get("TORTURE_SEED", "0"))
LONGEST = 20  # seconds for one input: more is a hang
pytestmark = pytest.mark.fault("mutated files, read")
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e999",
          b"NaN", b"0", b"99999999999999999999", b"\\u0000", b"\t", b"\n", b"\xff",
          b"\x00", b"\x00" * 8, b"\xff" * 4, b"'descr'", b"|O", b"(1,)", b"PK\x03\x04",
          b"../"]


def mutate(content, randomness):
    """One to four changes to some bytes."""
    content = bytearray(content)
    for _ in range(randomness.randint(1, 4)):
        if not content:
            break
        # Half of the changes near the ends, where the headers of the formats are
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
        sound = is_sound(path)
        try:
            read_features(path)
        except cli.UserError:
            assert not sound, "step 2 would leave alone what step 4 cannot read"
            raise
    return read


def settings(folder):
    return lambda: runs.read_run(os.path.join(folder, "checkpoints", "a"))


def weights(folder):
    model = runs.read_run(os.path.join(folder, "checkpoints", "a")).model
    return lambda: load_checkpoint(folder + "/checkpoints/a/best.npz", model)


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
