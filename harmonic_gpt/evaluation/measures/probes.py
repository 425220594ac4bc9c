"""Probes: what a linear or a small nonlinear classifier reads from mean hidden states (Baek et al., table 2)."""

import warnings

import numpy as np
from torch import Tensor

from harmonic_gpt.evaluation.activations import mean_states
from harmonic_gpt.evaluation.tasks.probe_tasks import ProbeTask
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.extras import require
from harmonic_gpt.progress import show_progress
from harmonic_gpt.runs.load import LoadedModel

FOLDS = 5
HIDDEN = 16  # the paper's
ITERATIONS = 200


def probe(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict:
    """k-fold macro F1 of a multilayer perceptron (one hidden layer of 16) and of logistic regression, with two
    baselines.

    Args:
        features: (N, D), standardised within each training fold. labels: (N,), each class at least FOLDS times.
    Returns {"mlp", "logistic", "majority", "shuffled"}: each {"f1", "sd" over folds, "folds"}. "shuffled" is logistic
    regression on labels in random order: what the features score by chance. "majority" always answers the commonest
    class.
    """
    require("eval", "sklearn")
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifiers = {
        # L-BFGS, scikit-learn's advice for small data: five times as fast here as Adam
        "mlp": MLPClassifier((HIDDEN,), solver="lbfgs", alpha=1.0, max_iter=ITERATIONS, random_state=seed),
        "logistic": LogisticRegression(max_iter=ITERATIONS),
        "majority": DummyClassifier(),
        "shuffled": LogisticRegression(max_iter=ITERATIONS),
    }
    mixed = np.random.default_rng(seed).permutation(labels)
    scored = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping after ITERATIONS is part of the protocol
        for name, classifier in classifiers.items():
            target = mixed if name == "shuffled" else labels
            scores = cross_val_score(
                make_pipeline(StandardScaler(), classifier), features, target, scoring="f1_macro", cv=folds
            )
            scored[name] = {"f1": float(scores.mean()), "sd": float(scores.std(ddof=1)), "folds": scores.tolist()}
    return scored


def run_probes(loaded: LoadedModel, tasks: list[ProbeTask], layers: list[int], seed: int = 0) -> list[dict]:
    """One row a task and layer: {"task", "layer", "examples", "classes", ...probe()}. A task with too few examples has
    a "flag". Raises InputError for a model without tokenizer, or without scikit-learn."""
    require("eval", "sklearn")  # before the work
    rows = []
    start = tokenizer_of(loaded).eos_token_id
    for task in show_progress(tasks, desc="probes"):
        classes, counts = np.unique(task.labels, return_counts=True)
        about = {
            "task": task.name,
            "examples": len(task.labels),
            "classes": {str(c): int(n) for c, n in zip(classes, counts, strict=True)},
        }
        if len(classes) < 2 or counts.min() < FOLDS:
            rows.append(about | {"layer": None, "flag": f"needs two classes of at least {FOLDS} examples"})
            continue
        states: list[Tensor] = mean_states(loaded.model, task.examples, start)
        about |= {"seed": seed, "flag": None}
        rows += [about | {"layer": layer} | probe(states[layer].numpy(), task.labels, seed) for layer in layers]
    return rows
