"""Handwritten digits with one linear layer (paper, section 4): accuracy, and whether harmonic weights look like the
mean digit.

scikit-learn's 1,797 digits of 8 x 8 pixels need no network. MNIST comes through `datasets`, from the hub or a local
folder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harmonic_gpt.errors import InputError, is_out_of_memory
from harmonic_gpt.extras import require
from harmonic_gpt.model.harmonic_logits import head_logits
from harmonic_gpt.studies import figures
from harmonic_gpt.studies.claims import Claim, combined, compare, told, write_claims

CLASSES = 10
BATCH, LEARNING_RATE = 64, 1e-3
# Of MNIST the paper's; of the small set as many as make a comparable number of steps
EPOCHS = {"digits": 200, "mnist": 10}
MNIST = "ylecun/mnist"


@dataclass(frozen=True)
class Images:
    """Flat images (N, D) with pixels in [0, 1], and their labels (N,)."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def class_means(self) -> Tensor:
        """(CLASSES, D), of the training images."""
        return torch.stack([self.train[self.train_labels == k].mean(0) for k in range(CLASSES)])


def load(data: str) -> Images:
    """`digits` (scikit-learn's), `mnist` (the hub), or a local folder with columns image and label."""
    if data == "digits":
        require("studies", "sklearn")
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train, test, train_labels, test_labels = train_test_split(
            images / 16, labels, test_size=0.25, random_state=0, stratify=labels
        )
        arrays = (train, train_labels, test, test_labels)
        return Images(data, *(torch.tensor(x, dtype=torch.float32 if x.ndim == 2 else torch.int64) for x in arrays))
    if data != "mnist" and not Path(data).is_dir():
        raise InputError(f"--data: expected digits, mnist or a local folder, got {data!r}")
    require("data", "datasets")
    from datasets import load_dataset

    try:
        dataset = load_dataset(MNIST if data == "mnist" else data)
        sides = [tensor for side in ("train", "test") for tensor in _tensors(dataset[side])]
    except Exception as error:  # of the network, of the files: `datasets` has many
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"--data {data}: cannot load images ({type(error).__name__}: {error}); expected a train and a test split "
            "with the columns image and label. --data digits needs no download"
        ) from error
    return Images("mnist", *sides)


def _tensors(split) -> tuple[Tensor, Tensor]:
    images = np.stack([np.asarray(image, dtype=np.float32) for image in split["image"]])
    return torch.from_numpy(images.reshape(len(images), -1) / 255), torch.tensor(split["label"])


def heads(pixels: int) -> dict[str, dict]:
    """Standard, and harmonic with n = sqrt(D) in both readings: the code's acts on d^2, which doubles it."""
    n = pixels**0.5
    return {
        "standard": {"exponent": 1.0, "similarity": "dot", "normalization": "softmax"},
        f"harmonic, n = {n:g} (paper)": {"exponent": n},
        f"harmonic, n = {2 * n:g} (code)": {"exponent": 2 * n},
    }


def train(images: Images, head: dict, seeds: int, epochs: int) -> Tensor:
    """Weights (seeds, CLASSES, D) of one layer without bias after AdamW, all seeds in one program."""
    pixels = images.train.shape[1]
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    w = torch.stack([torch.randn(CLASSES, pixels, generator=g) * pixels**-0.5 for g in generators]).requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=LEARNING_RATE)
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(len(images.train), generator=g) for g in generators])
        for batch in orders.split(BATCH, dim=1):  # (M, B)
            z = head_logits(images.train[batch], w, **head)  # (M, B, CLASSES)
            nats = F.cross_entropy(z.flatten(0, 1), images.train_labels[batch].flatten(), reduction="sum")
            loss = nats / batch.shape[1]
            optimizer.zero_grad()
            loss.backward()  # the seeds' losses are summed: each has its own gradient
            optimizer.step()
    return w.detach()


def accuracies(images: Images, w: Tensor, head: dict) -> np.ndarray:
    """(seeds,)"""
    z = head_logits(images.test.expand(len(w), -1, -1), w, **head)
    return (z.argmax(-1) == images.test_labels).double().mean(1).numpy()


def correlation_with_means(w: Tensor, means: Tensor) -> np.ndarray:
    """(seeds,) Pearson correlation over pixels of each class's weights with its mean image, averaged over classes. 1: a
    scaled copy."""
    a, b = (x.double() - x.double().mean(-1, keepdim=True) for x in (w, means))
    return F.cosine_similarity(a, b, dim=-1).mean(-1).numpy()


def distance_to_means(w: Tensor, means: Tensor) -> np.ndarray:
    """(seeds,) ||w_k - mean_k|| / ||mean_k||, averaged over classes. 0: the mean image itself."""
    return ((w - means).double().norm(dim=-1) / means.double().norm(dim=-1)).mean(-1).numpy()


def off_pixel_size(w: Tensor, images: Images) -> np.ndarray:
    """(seeds,) RMS weight at pixels that are off in all training images, over the RMS of all weights. NaN if there is
    no such pixel."""
    off = images.train.amax(0) == 0
    return (w[..., off].square().mean((1, 2)).sqrt() / w.square().mean((1, 2)).sqrt()).numpy()


def study(out: str, data: str, seeds: int, epochs: int | None) -> None:
    """Train, measure, draw the weights beside the class means, judge the claims."""
    require("studies", "matplotlib", "scipy")  # before the work
    torch.set_num_threads(1)
    images = load(data)
    epochs = epochs or EPOCHS[images.name]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    means = images.class_means()
    measured, drawn = {}, {"class means": means}
    for name, head in heads(images.train.shape[1]).items():
        w = train(images, head, seeds, epochs)
        drawn[name] = w[0]
        measured[name] = {
            "test accuracy": accuracies(images, w, head),
            "correlation": correlation_with_means(w, means),
            "distance": distance_to_means(w, means),
            "off": off_pixel_size(w, images),
        }
        print(f"{name}: " + ", ".join(f"{key} {_spread(value)}" for key, value in measured[name].items()), flush=True)
    figures.digit_weights(folder, f"{images.name}_weights", drawn)
    setting = f"{images.name}: {len(images.train):,} training images, {epochs} epochs, {seeds} seeds"
    write_claims(
        folder,
        "Digits",
        claims(measured),
        f"{setting}. Medians of harmonic against standard, p of two-sided Mann-Whitney tests; "
        "in the details, [min, max].",
    )


def claims(measured: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """What the paper says of section 4. measured[head][quantity]: (seeds,)."""
    standard, judged = measured["standard"], []
    for name, ours in measured.items():
        if name == "standard":
            continue
        accuracy = compare(ours["test accuracy"], standard["test accuracy"], True)
        level = abs(accuracy.ours - accuracy.base) < 0.005
        judged.append(
            Claim(
                f"accuracy is level with cross-entropy's, within half a percent ({name})",
                "holds" if level else "does not hold",
                f"accuracy {told(accuracy)}",
                f"Accuracy {_spread(ours['test accuracy'])}, standard {_spread(standard['test accuracy'])}.",
            )
        )
        like_mean = compare(ours["correlation"], standard["correlation"], True)
        judged.append(
            Claim(
                f"weights look like the mean digit: correlation over 0.9, above the standard model's ({name})",
                combined(["holds" if ours["correlation"].min() > 0.9 else "does not hold", like_mean.verdict]),
                f"correlation {told(like_mean)}",
                f"Correlation {_spread(ours['correlation'])}, standard {_spread(standard['correlation'])}; relative "
                f"distance {_spread(ours['distance'])}, standard {_spread(standard['distance'])}.",
            )
        )
        off = compare(ours["off"], standard["off"], False)
        verdict = "holds" if ours["off"].max() < 0.1 else "does not hold"
        if np.isnan(ours["off"]).any():
            verdict = "not measured"
        judged.append(
            Claim(
                f"weights are near zero, under a tenth of the rest, where pixels are always off ({name})",
                verdict,
                f"relative size {told(off)}",
                f"Relative size {_spread(ours['off'])}, standard {_spread(standard['off'])}.",
            )
        )
    return judged


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.4g} [{values.min():.4g}, {values.max():.4g}]"
