"""What the deletion test has found of each word.

    checkpoints/<run>/deletion_<split>.json
"""
import json
import os

from runtime import atomic, cli


def drops_path(folder, split):
    """Where a run's folder has what the deletion test found."""
    return os.path.join(folder, f"deletion_{split}.json")


def write_drops(folder, split, summary):
    """Write what was found of a split; 'of_each_word' in it is what `read_drops` reads.
    """
    atomic.write_json(drops_path(folder, split), summary)


def read_drops(folder, split, decoded):
    """{image id: {place in the caption: nats}}; empty where nothing was tested.

    Captions that are not those of the Decoded are left out: they were decoded since.
    Raises cli.UserError where the file is damaged.
    """
    path = drops_path(folder, split)
    try:
        with atomic.reading(path) as file:
            found = json.load(file).get("of_each_word", {})
        row = {str(i): n for n, i in enumerate(decoded.image_ids)}
        return {i: {int(place): float(drop) for place, drop in entry["drops"].items()}
                for i, entry in found.items() if i in row and entry["words"]
                == decoded.words[row[i], :decoded.steps[row[i]]].tolist()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; run analysis.deletion again")
