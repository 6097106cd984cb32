"""The CNNs that can extract features, and their properties.

To add one, add a row to NETWORKS and a file with its layers.
"""
import typing

from captioning import inception, lite2
from captioning.features import calibration_path, completed, digest
from captioning.grid import through
from runtime import atomic, cli


class Network(typing.NamedTuple):
    """A CNN without its classifier."""
    title: str
    side: int             # default side of its square input, in pixels
    channels: int
    layers: list          # those that change the size, for `grid.through`
    # With a side of 32 k + offset, the cells are centred in the picture
    offset: int
    untrained: bool       # whether random weights are supported
    # build(weights, side, images, statistics, seed): see inception.inception
    build: typing.Callable


NETWORKS = {
    "inception-v3": Network(
        "InceptionV3", inception.SIDE, inception.CHANNELS, inception.LAYERS, 11, True,
        inception.inception),
    "efficientnet-lite2": Network(
        "EfficientNet-Lite2", 420, lite2.CHANNELS, lite2.LAYERS, 4, False,
        lambda weights, *_: lite2.lite2(weights)),
}
STEP = 32  # pixels from one cell to the next, in all of them


def record_of(name, weights, side=None, seed=0, **others):
    """The extractor.json of a network: a dict for JSON.

    name: a key of NETWORKS. side: pixels of its input; None: its default. others:
    further fields. Raises cli.UserError for a side whose cells would be off-centre, and
    for weights that the network does not have.
    """
    network = NETWORKS[name]
    side = side or network.side
    smallest = network.offset + 2 * STEP
    if (side - network.offset) % STEP or side < smallest:
        near = max(smallest, network.offset + (side - network.offset) // STEP * STEP)
        raise cli.UserError(f"--side {side}: the cells of {network.title} would not "
                            f"lie evenly in the picture; give {near} or {near + STEP}")
    if weights == "random" and not network.untrained:
        raise cli.UserError(f"--weights random: not for {network.title}; leave it out, "
                            "or choose another --network")
    first, step, cells = through(network.layers, side)
    return dict(digest(weights), network=name, weights=weights, side=side, seed=seed,
                shape=[cells, cells, network.channels], grid=[first, step], **others)


def build(made, images=None, statistics=None):
    """Build a record's network: a function uint8 (B, side, side, 3) -> float32 (B,
    rows, columns, channels). images, statistics: see `inception.inception`.
    """
    return NETWORKS[made["network"]].build(made["weights"], made["side"], images,
                                           statistics, made["seed"])


def extractor(made, folder):
    """Rebuild a record's network, for the user's own pictures; see `build`.

    made: from `read_record`, or a run's. folder: where its statistics are, if any.
    Raises cli.UserError if the network cannot be rebuilt.
    """
    statistics = calibration_path(folder)
    if made is None:
        raise cli.UserError(f"{folder}: no extractor.json says which network made "
                            "these features; captioning your own pictures needs "
                            "features from extract_features.py")
    made = completed(made)
    if made["network"] not in NETWORKS or made["weights"] in NETWORKS:
        raise cli.UserError(f"{folder}: its features were made by another program "
                            f"({made['weights']}), so your own pictures cannot be "
                            "captioned; make the features with extract_features.py "
                            "--network and train another run")
    if made.get("digest", "") not in ("", digest(made["weights"]).get("digest", "")):
        raise cli.UserError(f"{made['weights']}: missing, or no longer the file that "
                            "made the features; put that file back")
    if made["weights"] == "random" and not atomic.exists(statistics):
        raise cli.UserError(f"{statistics}: missing; run extract_features.py again")
    return build(made, None, statistics)
