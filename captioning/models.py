"""Models of runs, built from their settings and loaded with their weights."""
import typing

from captioning.checkpoints import checkpoint_path, load_checkpoint
from captioning.features import check_network
from captioning.options import completed
from captioning.runs import damaged, how_it_looks, read_run, settings_path
from captioning.tokens import Vocabulary, vocabulary_path
from model import Captioner, Sizes, likeliest
from runtime import cli

LOOKING = {"expected": None, "likeliest": likeliest}  # runs.LOOKS -> Captioner's look


class LoadedRun(typing.NamedTuple):
    """A Run with its model."""
    folder: str
    settings: dict
    vocabulary: Vocabulary
    model: Captioner
    history: typing.List[dict]  # the row of log.csv for each finished epoch


def load_run(name, checkpoint="best", folder=None, look=None):
    """Load the run of this name: a LoadedRun.

    checkpoint: 'best', 'newest' or 'previous'. folder: see `read_run`. look: see
    `build`. Raises cli.UserError if the run does not exist, is damaged, or its parts do
    not fit together.
    """
    run = read_run(name, folder)
    try:
        model = build(run.settings, look)
    except (ValueError, KeyError, TypeError):
        raise damaged(run.folder)
    progress = load_checkpoint(checkpoint_path(run.folder, checkpoint), model.weights)
    return LoadedRun(*run, model, progress.history)


def build(settings, look=None):
    """Build the Captioner of a settings.json, with its initial weights.

    look: a key of LOOKING, how attention is turned into a context; None: as in
    training, where hard attention means the likeliest location unless one is sampled.
    Raises ValueError, KeyError or TypeError if the settings are invalid.
    """
    settings = completed(settings)
    without = settings["without"]
    return Captioner(Sizes(**settings["sizes"]), gate="gate" not in without,
                     initial_state="zeros" if "h0" in without else "mean",
                     recurrent="state" not in without, seed=settings["seed"],
                     word_query="word-query" not in without,
                     look=LOOKING[look or how_it_looks(settings)])


def start_from(name, model, vocabulary, features):
    """Initialize the model of a new run with another run's weights, of its best epoch.

    name: of that run. vocabulary, features: the new run's Vocabulary and folder of
    features. Raises cli.UserError if the weights were trained on other words or
    features, or do not fit.
    """
    run = load_run(name)
    if run.vocabulary.digest() != vocabulary.digest():
        path = vocabulary_path(run.folder)
        raise cli.UserError(f"{path}: the tokens have other words; make them anew with "
                            f"tokenize_captions.py --vocabulary {path}")
    check_network(features, run.settings, run.folder)
    shapes, expected = ({key: tuple(weight.shape.as_list())
                         for key, weight in weights.items()}
                        for weights in (run.model.weights, model.weights))
    other = [key for key, shape in expected.items() if shapes.get(key) != shape]
    if other:
        raise cli.UserError(
            f"{run.folder}: its weights do not fit: {other[0]} is "
            f"{shapes.get(other[0], 'not there')}, here {expected[other[0]]}; give the "
            f"flags of the model that {settings_path(run.folder)} has")
    unused = [key for key in shapes if key not in expected]
    if unused:
        cli.warn(f"{run.folder}: its {', '.join(unused)} have no place in this model; "
                 f"{settings_path(run.folder)} has the flags that it was trained with")
    for key, weight in model.weights.items():
        weight.assign(run.model.weights[key].numpy())
    print(f"starting from {run.folder}, epoch {len(run.history)}")
