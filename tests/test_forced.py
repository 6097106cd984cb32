"""Maps of people's captions, by teacher forcing, and how well they point."""
import json

import numpy as np

from captioning.coco import read_objects
from captioning.forced import forced_maps
from captioning.names import named, words_for
from captioning.tokens import read_tokens, read_vocabulary
from runtime.tf import tf
from test_model import LENGTHS, batch_of, model_of


def test_maps_are_those_of_each_caption_alone_step_by_step():
    model, batch = model_of(), batch_of()
    found = forced_maps(model, batch)
    assert [len(alphas) for alphas in found] == LENGTHS.tolist()
    for row, alphas in enumerate(found):
        image = batch.image_of[row]
        context = model.encode(tf.constant(batch.parcel.features[image:image + 1]))
        h = model.h_0(context.a)
        for t, expected in enumerate(alphas):
            _, gates = model.embed(batch.parcel.words[row:row + 1, t])
            h, _, alpha, _ = model.step(context, h, gates)
            np.testing.assert_allclose(alpha.numpy()[0], expected, rtol=1e-9)


def test_words_of_references_are_scored_and_are_the_same_for_every_run(world):
    assert world("train.py", "--run", "other", "--seed", "5", "--embedding", "8",
                 "--units", "12", "--epochs", "1", "--select", "loss") == 0
    found = []
    for run in ("a", "other"):
        assert world("evaluate.py", "--run", run) == 0
        assert world("analysis.pointing", "--run", run, "--of", "references") == 0
        with open(f"checkpoints/{run}/pointing_val_references.json") as file:
            found.append(json.load(file))
    vocabulary = read_vocabulary("data/tokens")
    tokens = read_tokens("data/tokens", "val")
    objects = read_objects("data", tokens.images.tolist(), tokens.image_ids.tolist())
    names = words_for(sorted({name for _, boxes in objects for name, _ in boxes}))
    count = sum(category in {name for name, _ in objects[image][1]}
                for words, image in zip(tokens.words, tokens.image_of)
                for *_, category in named(vocabulary.words(words[1:]), names))
    assert found[0]["words"] == found[1]["words"] == count > 10
    assert found[0]["peak_centre"] == found[1]["peak_centre"]


def test_ensemble_has_no_maps_of_references(world, capsys):
    assert world("train.py", "--run", "other", "--seed", "5", "--embedding", "8",
                 "--units", "12", "--epochs", "1", "--select", "loss") == 0
    assert world("evaluate.py", "--ensemble", "a", "other") == 0
    assert world("analysis.pointing", "--run", "a", "--split", "val_with_other", "--of",
                 "references") == 2
    assert "of an ensemble" in capsys.readouterr().err.splitlines()[-1]
