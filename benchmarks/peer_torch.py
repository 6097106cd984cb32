"""The captioner as one would write it in PyTorch, to compare in benchmarks/peers.py.

    .venv-torch/bin/python benchmarks/peer_torch.py FOLDER eager

Reads the data that peers.py wrote to FOLDER, then takes commands from stdin, one per
line, and answers each with a line of JSON. A batch has the longest captions first and
shrinks as captions end, each image is encoded once, and nn.GRUCell is the decoder's
cell. Needs torch and numpy, and torchvision to time InceptionV3.
"""
import functools
import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

START, END, BARRED = 1, 2, -1e9


class Captioner(nn.Module):
    """The model of model.py, with its weights; the letters are explained there."""

    def __init__(self, weights):
        super().__init__()
        (features, D), (_, A) = weights["W_v"].shape, weights["W_1"].shape
        (K, m), n = weights["E"].shape, weights["U"].shape[0]
        self.encoder, self.keys = nn.Linear(features, D), nn.Linear(D, A)
        self.query = nn.Linear(n, A, bias=False)
        self.score = nn.Linear(A, 1, bias=False)
        self.initial, self.beta = nn.Linear(D, n), nn.Linear(n, 1)
        self.embedding, self.cell = nn.Embedding(K, m), nn.GRUCell(m + D, n)
        self.L_h, self.L_z = nn.Linear(n, m, bias=False), nn.Linear(D, m, bias=False)
        self.output = nn.Linear(m, K)
        for layer, weight, bias in (
                (self.encoder, "W_v", "b_v"), (self.keys, "W_1", "b_1"),
                (self.query, "W_2", None), (self.score, "V", None),
                (self.initial, "W_h0", "b_h0"), (self.beta, "W_beta", "b_beta"),
                (self.L_h, "L_h", None), (self.L_z, "L_z", None),
                (self.output, "L_o", "b_o")):
            put(layer.weight, weights[weight].T)
            if bias:
                put(layer.bias, weights[bias])
        put(self.embedding.weight, weights["E"])
        put(self.cell.weight_ih, np.concatenate([weights["W_E"], weights["W_z"]]).T)
        put(self.cell.weight_hh, weights["U"].T)
        put(self.cell.bias_ih, weights["b_g"])
        put(self.cell.bias_hh, np.zeros_like(weights["b_g"]))

    def encode(self, features):
        """(I, L, F) -> annotation vectors (I, L, D), keys (I, L, A), h_0 (I, n)."""
        a = F.relu(self.encoder(features))
        return a, self.keys(a), torch.tanh(self.initial(a.mean(1)))

    def step(self, a, keys, h, Ey):
        """One word: h (B, n), z (B, D), alpha (B, L)."""
        scores = self.score(torch.tanh(keys + self.query(h)[:, None])).squeeze(2)
        alpha = F.softmax(scores, dim=1)
        z = torch.bmm(alpha[:, None], a).squeeze(1) * torch.sigmoid(self.beta(h))
        return self.cell(torch.cat([Ey, z], 1), h), z, alpha

    def deep_output(self, Ey, h, z):
        """Logits (N, K)."""
        return self.output(Ey + self.L_h(h) + self.L_z(z))

    def loss(self, features, words, sizes):
        """Cross-entropy in nats per word. sizes: captions with a word at each step."""
        a, keys, h = self.encode(features)
        Ey, found, targets = self.embedding(words[:, :-1]), [], []
        for t, k in enumerate(sizes):
            h, z, _ = self.step(a[:k], keys[:k], h[:k], Ey[:k, t])
            found.append((Ey[:k, t], h, z))
            targets.append(words[:k, t + 1])
        logits = self.deep_output(*(torch.cat(parts) for parts in zip(*found)))
        return F.cross_entropy(logits, torch.cat(targets))

    @torch.no_grad()
    def greedy(self, features, steps):
        """Words (I, steps), their log p, and attention (I, steps, L)."""
        a, keys, h = self.encode(features)
        words = torch.full((len(features),), START, device=features.device)
        found = []
        for _ in range(steps):
            Ey = self.embedding(words)
            h, z, alpha = self.step(a, keys, h, Ey)
            log_p = F.log_softmax(self.deep_output(Ey, h, z), 1)
            best, words = log_p.max(1)
            found.append((words, best, alpha))
        return [torch.stack(parts, 1).cpu() for parts in zip(*found)]


def put(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def main(folder, how):
    weights, data = (read(os.path.join(folder, name + ".npz"))
                     for name in ("weights", "data"))
    model = Captioner(weights)
    barred = Captioner(dict(weights, b_o=weights["b_o"] + BARRED * (
        np.isin(np.arange(len(weights["b_o"])), data["barred"]))))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = torch.compile(model.loss) if how == "compile" else model.loss
    steps, images = int(data["steps"]), torch.from_numpy(data["images"])

    def batch(i):
        lengths = data[f"lengths{i}"]
        return (torch.from_numpy(data[f"features{i}"]).float(),
                torch.from_numpy(data[f"words{i}"].astype(np.int64)),
                [int((lengths > t).sum()) for t in range(lengths[0])])

    def train():
        for i in range(int(data["batches"])):
            optimizer.zero_grad()
            value = loss(*batch(i))
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.)
            optimizer.step()
            value.item()

    def losses():
        """Also computes the gradients, which the first step would have to compile."""
        values = []
        for i in range(int(data["batches"])):
            value = loss(*batch(i))
            value.backward()
            values.append(value.item())
        return values

    def greedy():
        return np.concatenate([barred.greedy(images[i:i + 64].float(), steps)[0].numpy()
                               for i in range(0, len(images), 64)])
    answers = {
        "name": lambda: f"PyTorch {torch.__version__.split('+')[0]}, {how}",
        "losses": losses,
        "captions": lambda: greedy().tolist(), "train": lambda: seconds(train),
        "greedy": lambda: seconds(greedy),
        "inception": lambda: inception() and seconds(inception())}
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


@functools.lru_cache(None)
def inception():
    """A function that runs torchvision's InceptionV3; None without torchvision."""
    try:
        from torchvision.models import inception_v3
    except Exception as error:  # a build that does not match torch's
        print(f"no torchvision: {error}", file=sys.stderr)
        return None
    network = inception_v3(init_weights=False).eval()
    network.fc = nn.Identity()
    pixels = torch.rand(16, 3, 299, 299) * 2 - 1

    def run():
        with torch.no_grad():
            return network(pixels).numpy()
    run()
    return run


def seconds(function):
    begin = time.time()
    function()
    return time.time() - begin


if __name__ == "__main__":
    main(*sys.argv[1:])
