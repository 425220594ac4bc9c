"""Train many small models as one program: parameters, data and optimizer state have a leading dimension of M members.

Members differ in seed, data protocol, train fraction and exponent, and share everything else (`Cell`). A member draws
its start, data and batches from its own seed, so its result is that of its single run. Members that are done leave the
program.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_gpt.studies import networks
from harmonic_gpt.studies.networks import Parameters
from harmonic_gpt.studies.tasks import Task, split, task

BATCH = 32
EMBEDDING_REGULARISER = 0.01
TIMED_MEMBERS = 20  # of a program whose steps are timed, for estimates
CHECK_STEPS = 25  # between measurements of accuracy and norm: an epoch of 800 examples
TEST_SAMPLE = 200  # test examples of those measurements; the final accuracy is over all
CONVERGED_EPOCHS = 200  # with every answer right, on both sides


class Member(NamedTuple):
    """What the models of one cell differ in. exponent: harmonic exponent on the distance, 2 times the code's."""

    seed: int
    protocol: str = "clean"
    fraction: float = 0.8
    exponent: float = 2.0


@dataclass(frozen=True)
class Cell:
    """One batched program. epochs: of the member's own training set."""

    name: str
    task: str
    architecture: str
    head: str
    members: tuple[Member, ...]
    epochs: int
    learning_rate: float
    weight_decay: float
    stop_when_converged: bool

    def steps(self) -> list[int]:
        """Of each member, rounded up to whole checks."""
        examples = [len(split(task(self.task), m.protocol, m.fraction, m.seed)[0]) for m in self.members]
        return [math.ceil(self.epochs * math.ceil(n / BATCH) / CHECK_STEPS) * CHECK_STEPS for n in examples]


@dataclass
class Result:
    """What a cell leaves, member by member. The histories have one row a member, NaN after its end.

    embedding (M, V, D); test_accuracy (M,) over all test examples; reason (M,): "epochs", "converged" or "diverged";
    epochs, train, test, norm: (M, checks) own epochs done, accuracies since the last check and on TEST_SAMPLE examples,
    RMS norm of an embedding row.
    """

    embedding: np.ndarray
    test_accuracy: np.ndarray
    reason: list[str]
    epochs: np.ndarray
    train: np.ndarray
    test: np.ndarray
    norm: np.ndarray


@dataclass
class _Data:
    """Padded examples of the members; weight is 0 at padding."""

    inputs: Tensor  # (M, N, T)
    labels: Tensor  # (M, N)
    weight: Tensor  # (M, N)

    @classmethod
    def of(cls, task: Task, choices: list[np.ndarray]) -> "_Data":
        width = max(map(len, choices))
        index = torch.tensor(np.stack([np.pad(c, (0, width - len(c))) for c in choices]))
        weight = torch.tensor(np.stack([np.arange(width) < len(c) for c in choices]), dtype=torch.float32)
        return cls(torch.tensor(task.inputs)[index], torch.tensor(task.labels)[index], weight)

    def select(self, kept: Tensor) -> "_Data":
        return _Data(self.inputs[kept], self.labels[kept], self.weight[kept])


@dataclass
class _Batches:
    """Endless epochs of shuffled batches of one member."""

    examples: int
    generator: torch.Generator
    left: Tensor = field(default_factory=lambda: torch.empty(0, BATCH, dtype=torch.int64))

    def take(self, steps: int) -> Tensor:
        """(steps, BATCH) example numbers, -1 after the last of an epoch."""
        parts = [self.left]
        while sum(map(len, parts)) < steps:
            order = torch.randperm(self.examples, generator=self.generator)
            parts.append(F.pad(order, (0, -self.examples % BATCH), value=-1).view(-1, BATCH))
        batches = torch.cat(parts)
        self.left = batches[steps:]
        return batches[:steps]


class _Program:
    """The models of a cell that still train."""

    def __init__(self, cell: Cell):
        self.cell = cell
        self.task = task(cell.task)
        self.ids = torch.arange(len(cell.members))  # of the members still here
        sides = [split(self.task, m.protocol, m.fraction, m.seed) for m in cell.members]
        self.train_data = _Data.of(self.task, [train for train, _ in sides])
        self.test_data = _Data.of(self.task, [test for _, test in sides])
        self.exponents = torch.tensor([m.exponent for m in cell.members])
        self.batches = [
            _Batches(len(train), torch.Generator().manual_seed(2**31 + m.seed))
            for m, (train, _) in zip(cell.members, sides, strict=True)
        ]
        tokens = self.task.inputs.shape[1]
        seeds = [m.seed for m in cell.members]
        self._set_parameters(
            networks.initial_parameters(cell.architecture, cell.head, self.task.vocab_size, tokens, seeds)
        )

    def _set_parameters(self, parameters: Parameters) -> None:
        self.p = parameters
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=self.cell.learning_rate, weight_decay=self.cell.weight_decay, fused=True
        )

    def keep(self, kept: Tensor) -> None:
        """Drop the members that are not `kept` (bool): exactly as if they had never been in the program."""
        kept = kept.nonzero().squeeze(1)
        states = {name: self.optimizer.state[p] for name, p in self.p.items()}
        self._set_parameters({name: p.detach()[kept].requires_grad_() for name, p in self.p.items()})
        for name, p in self.p.items():
            state = states[name]
            self.optimizer.state[p] = {
                "step": state["step"],
                "exp_avg": state["exp_avg"][kept],
                "exp_avg_sq": state["exp_avg_sq"][kept],
            }
        self.ids, self.exponents = self.ids[kept], self.exponents[kept]
        self.train_data, self.test_data = self.train_data.select(kept), self.test_data.select(kept)
        self.batches = [self.batches[i] for i in kept.tolist()]

    def centers(self) -> Tensor:
        return self.p.get("centers", self.p["embedding"])

    def train(self, steps: int) -> tuple[Tensor, Tensor]:
        """Train `steps` steps. Returns the members' share of right answers on the way, and their summed losses."""
        index = torch.stack([b.take(steps) for b in self.batches], 1)  # (steps, M, B)
        real = index >= 0
        members = torch.arange(len(self.ids))[:, None]
        index = index.clamp_min(0)
        all_inputs, all_labels = self.train_data.inputs[members, index], self.train_data.labels[members, index]
        weights = real / real.sum(-1, keepdim=True)  # each batch's mean over its real examples
        right, losses = torch.zeros(len(self.ids)), torch.zeros(len(self.ids))
        for inputs, labels, weight in zip(all_inputs, all_labels, weights, strict=True):
            loss, correct = self._loss(inputs, labels, weight)
            embedding = self.p["embedding"]
            regulariser = embedding.square().mean(1).sqrt().mean(1)  # columns' RMS, averaged
            (loss + EMBEDDING_REGULARISER * regulariser).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses += loss.detach()
            right += correct
        if self.cell.head == "contrastive":
            return self.accuracy(self.train_data), losses
        return right / real.sum((0, 2)), losses

    def _loss(self, inputs: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (M,) and numbers of right answers (M,) of one batch."""
        hidden = networks.hidden_states(self.p, inputs)
        if self.cell.head == "contrastive":
            return networks.contrastive_loss(hidden, labels, weight), torch.zeros(len(self.ids))
        z = networks.logits(self.cell.head, hidden, self.centers(), self.exponents)
        nats = F.cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        correct = (z.detach().argmax(-1) == labels) & (weight > 0)
        return (nats * weight).sum(1), correct.sum(1)

    @torch.no_grad()
    def accuracy(self, data: _Data) -> Tensor:
        """(M,) share of right answers. A contrastive model has no head: it answers with the nearest class mean of its
        training set."""
        hidden = networks.hidden_states(self.p, data.inputs)
        centers, known = self.centers(), None
        if self.cell.head == "contrastive":
            train_hidden = networks.hidden_states(self.p, self.train_data.inputs)
            centers, known = networks.class_means(
                train_hidden, self.train_data.labels, self.train_data.weight, self.task.vocab_size
            )
        z = networks.logits(self.cell.head, hidden, centers, self.exponents)
        if known is not None:
            z = z.masked_fill(~known[:, None], -math.inf)
        return ((z.argmax(-1) == data.labels) * data.weight).sum(1) / data.weight.sum(1)

    def sampled_test_data(self) -> _Data:
        data = self.test_data
        return _Data(data.inputs[:, :TEST_SAMPLE], data.labels[:, :TEST_SAMPLE], data.weight[:, :TEST_SAMPLE])

    @torch.no_grad()
    def norms(self) -> Tensor:
        return self.p["embedding"].square().sum(-1).mean(-1).sqrt()


def run(cell: Cell) -> Result:
    """Train every member of `cell` to its end. Reproducible on one machine and number of threads."""
    program = _Program(cell)
    total = len(cell.members)
    steps = torch.tensor(cell.steps())
    batches_per_epoch = torch.tensor([math.ceil(b.examples / BATCH) for b in program.batches])
    checks = int(steps.max()) // CHECK_STEPS
    history = {key: torch.full((total, checks), math.nan) for key in ("epochs", "train", "test", "norm")}
    embedding = torch.zeros(total, *program.p["embedding"].shape[1:])
    test_accuracy, reason = torch.zeros(total), [""] * total
    perfect_since = torch.zeros(total)  # own epochs at which the last wrong answer was seen

    for check in range(checks):
        train_accuracy, losses = program.train(CHECK_STEPS)
        done = (check + 1) * CHECK_STEPS
        ids = program.ids
        epochs = done / batches_per_epoch[ids]
        tested = program.accuracy(program.sampled_test_data())
        for key, value in zip(history, (epochs, train_accuracy, tested, program.norms()), strict=True):
            history[key][ids, check] = value
        perfect = (train_accuracy == 1) & (tested == 1)
        perfect_since[ids] = torch.where(perfect, perfect_since[ids], epochs)

        diverged = ~losses.isfinite()
        converged = (epochs - perfect_since[ids] >= CONVERGED_EPOCHS) & cell.stop_when_converged
        leaving = diverged | converged | (done >= steps[ids])
        if not leaving.any():
            continue
        final = program.accuracy(program.test_data)
        for row in leaving.nonzero().squeeze(1).tolist():
            member = ids[row]
            reason[member] = "diverged" if diverged[row] else "converged" if converged[row] else "epochs"
            embedding[member], test_accuracy[member] = program.p["embedding"][row].detach(), final[row]
        if leaving.all():
            break
        program.keep(~leaving)
    used = slice(0, check + 1)
    return Result(
        embedding.numpy(), test_accuracy.numpy(), reason, **{k: v[:, used].numpy() for k, v in history.items()}
    )


def seconds_per_step(cell: Cell) -> float:
    """Measured time of one member's step in a program like the cell's, for estimates."""
    from time import perf_counter

    sample = replace(cell, members=tuple(Member(seed) for seed in range(TIMED_MEMBERS)))
    program = _Program(sample)
    program.train(5)
    start = perf_counter()
    program.train(CHECK_STEPS)
    return (perf_counter() - start) / (CHECK_STEPS * TIMED_MEMBERS)
