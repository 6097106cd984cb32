"""Caption your own pictures in five lines of Python:

    from captioning.captioner import load

    captioner = load("baseline")
    caption = captioner("photo.jpg", beam=5)
    print(caption.text, caption.alphas.shape)   # (words, rows, columns)
    caption.draw("photo.png")
"""
import os
import typing

import numpy as np
from tqdm import tqdm

from captioning import figures
from captioning.decode import Decoder
from captioning.familiarity import LIMIT, REMARK, read_familiarity
from captioning.features import cells_of, completed, read_record
from captioning.grid import Grid
from captioning.models import load_run
from captioning.networks import extractor
from captioning.own import BEAM
from captioning.pictures import load_picture, load_square
from captioning.runs import HERE, RUNS, others_than, settings_path
from runtime import cli
from runtime.tf import device_errors, start

LENGTH_POWER = 1.  # as in all published scores: the most probable caption is too short
BATCH = 16   # pictures in one pass of the network


class OwnCaption(typing.NamedTuple):
    """The caption of one picture, of T words, and where the model looked for each."""
    path: str                # of the picture
    words: typing.List[str]
    log_probs: np.ndarray    # float32 (T,): log p of each word, given those before it
    alphas: np.ndarray       # float32 (T, rows, columns): where the model looked
    betas: typing.Optional[np.ndarray]  # float32 (T,): the gate; None without one
    grid: Grid               # where the cells lie in the picture
    # The share of the run's own validation images that are less strange; None if the
    # run has no statistics
    strangeness: typing.Optional[float] = None

    @property
    def text(self):
        """The words, joined by spaces."""
        return " ".join(self.words)

    @property
    def remark(self):
        """A warning if the picture is unlike the training images; else ''."""
        return REMARK if (self.strangeness or 0) > LIMIT else ""

    def __str__(self):
        return self.text

    def __repr__(self):  # without the arrays: for a notebook
        return f"OwnCaption({self.path!r}, {self.text!r})"

    @property
    def flat_alphas(self):
        """The maps as vectors, (T, L)."""
        return self.alphas.reshape(len(self.words), self.grid.shape[0]
                                   * self.grid.shape[1])

    def picture(self, longest_side=figures.LONGEST_SIDE):
        """The picture itself, uint8 (H, W, 3). Raises cli.UserError."""
        return load_picture(self.path, longest_side)

    def draw(self, path, layout="grid", colours="light"):
        """Write a figure: the picture, then where the model looked for each word.

        path: the extension, .png, .pdf or .svg, sets the format. layout, colours: see
        `figures.draw`. Raises cli.UserError if the picture is gone, or is at `path`.
        """
        if os.path.exists(path) and os.path.samefile(path, self.path):
            raise cli.UserError(f"{path}: that is the picture itself; give the figure "
                                "another name")
        figures.draw(self.picture(), self.words, self.flat_alphas, path,
                     figures.notes_of(self.log_probs, self.betas), layout, colours,
                     self.grid, remark=self.remark)


class PictureCaptioner:
    """Captions pictures with a trained run and the network that made its features."""

    def __init__(self, run, features=None):
        """run: a LoadedRun. features: the folder of features it was trained on, whose
        record then gives the network instead of the run's.
        """
        self.run, self.decoder, self._network = run, Decoder(run.model), None
        self.familiarity = read_familiarity(run.folder)
        self.pixels = self.familiarity.pixels if self.familiarity else 0
        if features or "extractor" not in run.settings:  # a run of the first releases
            self.folder = features or run.settings["features"]
            self.made = read_record(self.folder)
        else:
            self.folder, self.made = run.folder, run.settings["extractor"]
        # Without a record, `network` raises the error
        self.side = completed(self.made)["side"] if self.made else 1

    @property
    def network(self):
        """A function uint8 (B, side, side, 3) -> float32 (B, rows, columns, channels).

        Built on first use. Raises cli.UserError if it cannot be built.
        """
        if self._network is None:
            self._network = extractor(self.made, self.folder)
        return self._network

    def __call__(self, path, beam=BEAM):
        """The OwnCaption of one picture. Raises cli.UserError if it is unreadable."""
        return self.many([path], beam)[0]

    def many(self, paths, beam=BEAM, skip=False):
        """The OwnCaptions of several pictures, in order.

        paths: of the pictures. beam: width of the beam search. skip: leave unreadable
        pictures out, with a warning each. Raises cli.UserError for an unreadable
        picture, with `skip` only if all of them are, and for a beam below 1.
        """
        if isinstance(paths, (str, os.PathLike)):
            raise cli.UserError(f"{paths}: one path where a list of them belongs; call "
                                "the captioner itself with one path")
        if beam < 1:
            raise cli.UserError(f"beam {beam}: must be at least 1")
        paths = [os.fspath(path) for path in paths]
        captions, lost = [], []
        with tqdm(total=len(paths), desc="caption", unit="image",
                  disable=len(paths) <= BATCH) as bar:
            for i in range(0, len(paths), BATCH):
                read = []
                for path in paths[i:i + BATCH]:
                    try:
                        read.append((path, load_square(path, self.side, self.pixels)))
                    except cli.UserError as error:
                        if not skip:
                            raise
                        lost.append(error)
                if read:
                    with device_errors():
                        captions += self._captions(*zip(*read), beam=beam)
                bar.update(len(paths[i:i + BATCH]))
        if lost and not captions:
            raise lost[0]
        for error in lost:
            cli.warn(f"left out: {error}")
        return captions

    def _captions(self, paths, squares, beam):
        """The OwnCaptions of a batch; squares: B pictures, uint8 (side, side, 3)."""
        maps = self.network(np.stack(squares)).numpy()
        maps = maps.reshape(len(paths), -1, maps.shape[-1])
        grid = cells_of(self.run.settings, maps.shape[1])
        strange = [None] * len(paths) if self.familiarity is None else (
            self.familiarity.strangeness(maps.mean(axis=1)).tolist())
        captions = []
        beams = self.decoder.search(maps, beam, length_power=LENGTH_POWER)
        for path, strangeness, (best, *_) in zip(paths, strange, beams):
            words = self.run.vocabulary.words(best.words)
            T = len(words)
            captions.append(OwnCaption(
                path, words, best.log_probs[:T],
                best.alphas[:T].reshape((T,) + grid.shape),
                None if best.betas is None else best.betas[:T], grid, strangeness))
        return captions


def load(run, features=None):
    """Load a trained run as a function of pictures: see `PictureCaptioner`.

    run: the path of its folder, or its name below checkpoints/ of the current folder,
    else of this repository. features: see `PictureCaptioner`. Starts TensorFlow if
    necessary. Raises cli.UserError if there is no such run.
    """
    run = os.fspath(run)
    places = [run, os.path.join(RUNS, run), os.path.join(HERE, RUNS, run)]
    folder = next((place for place in places if os.path.isfile(settings_path(place))),
                  None)
    if folder is None:
        raise cli.UserError(f"{run}: no such run: neither a run's folder nor a name "
                            f"below {' or '.join(map(os.path.dirname, places[1:]))}"
                            + others_than(run))
    start()
    return PictureCaptioner(load_run(os.path.basename(folder), folder=folder), features)
