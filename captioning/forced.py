"""Attention maps of captions that people wrote: the model is given their words, one
after the other (teacher forcing), and looks.
"""
import numpy as np

from captioning.batches import CaptionBatches, tensors
from captioning.decoded import read_source
from captioning.features import check_network, find_features
from captioning.models import load_run
from captioning.tokens import read_tokens
from runtime import cli
from runtime.tf import start

CAPTIONS = 64  # a batch


def maps_of_references(name, split, images):
    """The maps of people's captions of some images, for the run of this name.

    split: of the decoded captions, which say where tokens and features are. images: a
    list of str, paths below the data set. Returns, for each image, a list of (words,
    alphas): T str, and float32 (T + 1, L), which includes the end token's map. Raises
    cli.UserError if tokens or features are missing, or of another network.
    """
    run = load_run(name)
    source = read_source(run, split)
    if source.get("with"):
        raise cli.UserError(f"{split}: these captions are of an ensemble, which has no "
                            "maps of other captions; name a single run's")
    check_network(source["features"], run.settings, run.folder)
    tokens = read_tokens(source["tokens"], source["split"])
    if tokens.vocabulary != run.vocabulary.digest():
        raise cli.UserError(f"{source['tokens']}: has another vocabulary than "
                            f"{run.folder}; make the tokens anew with "
                            "tokenize_captions.py --vocabulary")
    start()
    captions = CaptionBatches(tokens, *find_features(source["features"], tokens.images,
                                                     source["split"]))
    found = {str(image): [] for image in images}
    for batch in captions.batches(captions.epoch(CAPTIONS)):
        for number, alphas in zip(batch.numbers, forced_maps(run.model, batch)):
            image = str(tokens.images[tokens.image_of[number]])
            if image in found:
                row = tokens.words[number, 1:len(alphas)]
                found[image].append((run.vocabulary.words(row), alphas))
    return [found[str(image)] for image in images]


def forced_maps(model, batch):
    """The maps of the captions of one Batch: a list of float arrays (length, L).

    batch: of arrays or tensors.
    """
    *_, alphas = model.unroll(tensors(batch))  # C tensors (k_t, L)
    alphas = [alpha.numpy() for alpha in alphas]
    return [np.stack([alpha[row] for alpha in alphas[:length]])
            for row, length in enumerate(batch.lengths)]
