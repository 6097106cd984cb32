"""The deletion test's results, with the drop of each word.

    checkpoints/<run>/deletion_<split>.json
"""
import json
import os

from runtime import atomic, cli


def drops_path(folder, split):
    """The path of a run's deletion test results."""
    return os.path.join(folder, f"deletion_{split}.json")


def write_drops(folder, split, summary):
    """Write a split's results; `read_drops` reads back their 'of_each_word'."""
    atomic.write_json(drops_path(folder, split), summary)


def read_drops(folder, split, decoded):
    """Each word's drop, {image id: {index of the word: nats}}; {} without a test.

    Images whose caption differs from the Decoded's are left out: they have been decoded
    again since the test. Raises cli.UserError if the file is damaged.
    """
    path = drops_path(folder, split)
    try:
        with atomic.reading(path) as file:
            entries = json.load(file).get("of_each_word", {})
        row = {str(i): n for n, i in enumerate(decoded.image_ids)}
        return {i: {int(place): float(drop) for place, drop in entry["drops"].items()}
                for i, entry in entries.items() if i in row and entry["words"]
                == decoded.words[row[i], :decoded.steps[row[i]]].tolist()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; run analysis.deletion again")
