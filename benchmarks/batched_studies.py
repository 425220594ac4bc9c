"""Speed of the studies' batched program against training one model at a time, side by side.

    OMP_NUM_THREADS=1 python benchmarks/batched_studies.py

"plain" is what the paper's scripts do: an nn.Module, a DataLoader of batches of 32, loss.backward(), AdamW, training
accuracy from the batches, test accuracy after every epoch. "one" is our program with a single member. Each measures the
same curves; a round is an epoch of each, the table has medians of microseconds a model and training step, and ratios.
"""

import argparse
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harmonic_gpt.studies.batched import BATCH, EMBEDDING_REGULARISER, Cell, Member, _Program
from harmonic_gpt.studies.networks import HEADS, LAYERS, MLP_HIDDEN, TRANSFORMER_HIDDEN, D
from harmonic_gpt.studies.tasks import split, task


class Plain(nn.Module):
    """One small model of torch's own layers, with a harmonic layer (n = 2 on the distance)."""

    def __init__(self, architecture: str, vocab_size: int, tokens: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, D)
        self.architecture = architecture
        if architecture == "mlp":
            self.layers = nn.Sequential(nn.Linear(tokens * D, MLP_HIDDEN), nn.SiLU(), nn.Linear(MLP_HIDDEN, D))
        else:
            self.positions = nn.Parameter(torch.randn(tokens, D))
            self.centers = nn.Linear(D, vocab_size, bias=False)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(D, HEADS, TRANSFORMER_HIDDEN, dropout=0.0, batch_first=True)
                for _ in range(LAYERS)
            )

    def forward(self, inputs):
        x = self.embedding(inputs)
        if self.architecture == "mlp":
            x, w = self.layers(x.flatten(1)), self.embedding.weight
        else:
            x = x + self.positions
            for layer in self.layers:
                x = x + layer(x)
            x, w = x[:, -1], self.centers.weight
        squared = x.square().sum(-1, keepdim=True) + w.square().sum(-1) - 2 * x @ w.T + 1e-4
        return -squared.log()


def plain_epoch(model: Plain, optimizer, train: DataLoader, test: DataLoader) -> tuple[float, float]:
    """Accuracies in training, and on the test set afterwards."""
    right = 0
    for inputs, labels in train:
        columns = model.embedding.weight.square().mean(0).sqrt()
        z = model(inputs)
        loss = nn.functional.cross_entropy(z, labels) + EMBEDDING_REGULARISER * columns.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right += (z.argmax(-1) == labels).sum().item()
    with torch.no_grad():
        tested = sum((model(inputs).argmax(-1) == labels).sum().item() for inputs, labels in test)
    return right / len(train.dataset), tested / len(test.dataset)


def batched_epoch(program: _Program, steps: int) -> tuple:
    return program.train(steps), program.accuracy(program.sampled_test_data()), program.norms()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | program | µs a model and step | against plain | against one |\n|---|---|---|---|---|")
    addition = task("modular_addition")
    sides = [
        TensorDataset(torch.tensor(addition.inputs[side]), torch.tensor(addition.labels[side]))
        for side in split(addition, "paper", 0.8, 0)
    ]
    loaders = [DataLoader(data, batch_size=BATCH, shuffle=True) for data in sides]
    steps = len(loaders[0])
    for architecture in ("mlp", "transformer"):
        model = Plain(architecture, addition.vocab_size, addition.inputs.shape[1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        cell = Cell(
            "benchmark", "modular_addition", architecture, "harmonic", (Member(0, "paper"),), 1, 2e-3, 1e-2, False
        )
        sizes = [1, *arguments.members]
        programs = {
            m: _Program(replace(cell, members=tuple(Member(seed, "paper") for seed in range(m)))) for m in sizes
        }
        runs = {"plain": (1, lambda m=model, o=optimizer: plain_epoch(m, o, *loaders))}
        runs |= {
            f"{m} at a time" if m > 1 else "one": (m, lambda p=programs[m]: batched_epoch(p, steps)) for m in sizes
        }
        times = {name: [] for name in runs}
        for round_ in range(arguments.rounds + 1):
            for name, (members, run) in runs.items():
                start = perf_counter()
                run()
                if round_:  # the first warms up
                    times[name].append((perf_counter() - start) / (steps * members))
        medians = {name: median(t) for name, t in times.items()}
        for name, seconds in medians.items():
            plain, one = medians["plain"] / seconds, medians["one"] / seconds
            print(f"| {architecture} | {name} | {1e6 * seconds:.0f} | {plain:.1f} x | {one:.1f} x |")


if __name__ == "__main__":
    main()
