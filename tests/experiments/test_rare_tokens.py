"""Losses by frequency of the token: parts that add up to the whole."""

import numpy as np
import pytest
import rare_tokens
import torch

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokens import TokenFolder, Tokens


def test_losses_by_frequency_add_up():
    config = HarmonicGPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = HarmonicGPT2ForCausalLM(config).eval()
    blocks = torch.randint(30, (5, 17))
    classes = torch.arange(30) % 5  # of the six classes one is empty
    measured = rare_tokens.by_frequency(model, blocks, classes)
    logits = model(input_ids=blocks[:, :-1]).logits.detach().double().flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, blocks[:, 1:].flatten(), reduction="none")
    of_target = classes[blocks[:, 1:].flatten()]
    assert measured["mass"].sum() == pytest.approx(1) == measured["share"].sum()
    assert measured["mass"][2] == pytest.approx(logits.softmax(-1)[:, classes == 2].sum(1).mean().item(), rel=1e-6)
    assert measured["loss"][:5] == pytest.approx([losses[of_target == k].mean().item() for k in range(5)], rel=1e-6)
    assert measured["share"][3] == pytest.approx((of_target == 3).double().mean().item())
    assert measured["norm"][1] == pytest.approx(model.lm_head.weight[classes == 1].norm(dim=1).mean().item(), rel=1e-6)

    rare = (of_target == 1) | (of_target == 2)
    p = logits.softmax(-1)
    p_rare = p[:, (classes == 1) | (classes == 2)].sum(1)
    when = -torch.where(rare, p_rare, 1 - p_rare).log()
    for k in range(5):
        assert measured["when"].sum(0)[k] == pytest.approx(when[of_target == k].sum().item(), rel=1e-6)

    assert measured["losses"].sum(0)[:5] == pytest.approx(measured["loss"][:5] * measured["targets"].sum(0)[:5])


def test_the_parts_of_a_row_add_up_to_the_loss(tmp_path):
    def tokens_of(name: str, ids: np.ndarray) -> Tokens:
        ids.astype(np.uint16).tofile(tmp_path / name)
        return Tokens([tmp_path / name], np.dtype(np.uint16), 30)

    model = HarmonicGPT2ForCausalLM(HarmonicGPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    rng = np.random.default_rng(0)
    often = np.repeat(np.arange(30), np.where(np.arange(30) % 2, 5, 200))  # odd ones are rare
    train, validation = tokens_of("train", often), tokens_of("val", rng.integers(0, 30, 300))
    data = TokenFolder(tmp_path, 30, {"train": train, "val": validation}, None)
    found = rare_tokens.rare_words(model, data, start=200, block=16)
    targets = np.array(found["targets"])
    assert targets.sum() == 96  # six whole blocks of the last 99 targets
    assert targets[[1, 3]].all()
    share = targets[rare_tokens.RARE].sum() / 96
    whole = sum(n * loss for n, loss in zip(targets, found["losses"], strict=True) if n) / 96
    parts = found["when"] + share * found["which"] + (1 - share) * found["which_other"]
    assert parts == pytest.approx(whole) == found["all"]
    assert found["loss"] == pytest.approx(found["losses"][1])
    assert found["which"] < found["loss"]
    assert found["which_after_fit"] == pytest.approx(np.log(15), rel=1e-3)  # targets are chance, so temperature is high
    assert model.training


def test_bias_and_temperature_are_taken_out_and_knowledge_is_not():
    rng, n = np.random.default_rng(0), 4000
    counts = rng.integers(1, 100, 40)
    target = rng.integers(0, 40, 2 * n)
    log_p = rng.normal(size=(2 * n, 40))
    log_p[np.arange(2 * n), target] += 1  # what the context says

    def fitted(log_p: np.ndarray) -> float:
        texts = (rare_tokens.AtRare(log_p[part], target[part]) for part in (slice(n), slice(n, None)))
        return rare_tokens.which_after_fit(*texts, counts)

    wiser = log_p.copy()
    wiser[np.arange(2 * n), target] += 0.5
    assert fitted(2 * log_p + 0.7 * np.log2(counts)) == pytest.approx(fitted(log_p), abs=1e-4)
    assert fitted(wiser) < fitted(log_p) - 0.2
    nothing = rare_tokens.AtRare(log_p[:0], target[:0])
    assert rare_tokens.which_after_fit(nothing, nothing, counts) is None


def test_the_picture_leaves_out_classes_with_few_targets(tmp_path):
    rng = np.random.default_rng(0)
    targets = np.tile([0, 2, 3, 4, 5, 6], (8, 1)).astype(float)
    runs = {}
    for run, head in (("a", "harmonic"), ("b", "standard")):
        losses = targets * rng.uniform(1, 2, targets.shape)
        with np.errstate(invalid="ignore"):
            runs[run] = head, {"targets": targets, "losses": losses, "loss": losses.sum(0) / targets.sum(0)}
    rare_tokens.draw(runs, str(tmp_path / "loss.png"))
    assert (tmp_path / "loss.png").stat().st_size > 10_000
