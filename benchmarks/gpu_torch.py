"""What benchmarks/gpu.py measures, in PyTorch: rows as JSON on the last line.

    python3 benchmarks/gpu_torch.py full FOLDER    # which holds weights.npz

Needs torch and numpy, and torchvision for InceptionV3, which is left out without it.
In the words of benchmarks/gpu.py, 'compiled' is torch.compile, and 'mixed' is autocast
to bfloat16 with float32 weights.
"""
import json
import os
import sys
import time

import numpy as np
import torch

from peer_torch import Captioner, read

WORDS = 12
WAYS = (("eager", "float32"), ("eager", "tf32"), ("eager", "mixed"),
        ("compiled", "tf32"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rate(work, items, seconds):
    """Items per second: the median over calls of `work` for this many seconds."""
    for _ in range(3):
        work()
    synchronize()
    times, begin = [], time.time()
    while len(times) < 3 or time.time() - begin < seconds:
        start = time.time()
        work()
        synchronize()
        times.append(time.time() - start)
    return items / float(np.median(times))


def training(weights, how, B, seconds):
    model = Captioner(weights).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = torch.compile(model.loss) if how == "compiled" else model.loss
    features = torch.rand(2, B, 64, 2048).half()
    words = torch.randint(4, 5000, (2, B, WORDS + 1))

    def step(i):
        optimizer.zero_grad()
        value = loss(features[i].to(DEVICE).float(), words[i].to(DEVICE), WORDS * [B])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.)
        optimizer.step()
        value.item()
    return rate(lambda: (step(0), step(1)), 2 * B, seconds)


def greedy(weights, how, images, seconds):
    model = Captioner(weights).to(DEVICE)
    if how == "compiled":
        model.step = torch.compile(model.step)
    features = torch.rand(images, 64, 2048).half()
    return rate(lambda: model.greedy(features.to(DEVICE).float(), WORDS), images,
                seconds)


def forward(how, B, seconds):
    from torchvision.models import inception_v3
    model = inception_v3(weights=None, init_weights=False, aux_logits=True)
    model = model.to(DEVICE, memory_format=torch.channels_last).eval()
    run = torch.compile(model) if how == "compiled" else model
    pixels = torch.randint(0, 256, (B, 3, 299, 299), dtype=torch.uint8)

    def work():
        x = pixels.to(DEVICE).to(memory_format=torch.channels_last)
        run(x.float() / 127.5 - 1).float().cpu()
    with torch.no_grad():
        return rate(work, B, seconds)


def main(size, folder):
    weights = read(os.path.join(folder, "weights.npz"))
    small = size == "small"
    seconds, rows = .05 if small else .7, []
    for how, precision in WAYS:
        if how == "compiled" and small:
            continue  # it needs a C++ compiler on a CPU
        tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for what, sizes, work in (
                ("training", (4,) if small else (64, 256, 1024),
                 lambda how, B: training(weights, how, B, seconds)),
                ("greedy", (2,) if small else (64, 256),
                 lambda how, B: greedy(weights, how, B, seconds)),
                ("InceptionV3", (2,) if small else (64, 256),
                 lambda how, B: forward(how, B, seconds))):
            for B in sizes if how == "eager" else sizes[::len(sizes) - 1]:
                try:
                    with torch.autocast(DEVICE, torch.bfloat16,
                                        enabled=precision == "mixed"):
                        found = work(how, B)
                except ImportError:
                    continue
                rows.append({"what": what, "how": "PyTorch, " + how, "batch": B,
                             "precision": precision, "rate": round(found, 1),
                             "gigabytes": None})
                print(f"PyTorch: {what}, batch {B}, {how}, {precision}: {found:.0f}/s",
                      file=sys.stderr, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
