"""The whole measurement of one model: a collapsed one is caught and wins nothing."""

import numpy as np
import torch

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.evaluation.comparison.arms import compare_arms
from harmonic_gpt.evaluation.comparison.compare import paper_losses
from harmonic_gpt.evaluation.interpretability import measure_interpretability
from harmonic_gpt.evaluation.tasks.word_pairs import single_token_id
from harmonic_gpt.runs.load import LoadedModel


def test_a_collapsed_model_wins_the_papers_measure_and_no_headline(tiny_config, token_folder):
    tokenizer = load_tokenizer(token_folder / "tokenizer")
    words = [word for token in range(300) if (word := tokenizer.decode([token]).strip()).isalpha()]
    words = [word for word in words if single_token_id(tokenizer, word) is not None]
    tasks = {"made up": list(zip(words[:20:2], words[1:20:2], strict=True))}
    assert len(tasks["made up"]) == 10
    text, counts = torch.randint(0, 12, (1200,)).numpy(), np.full(300, 50)
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300, tie_word_embeddings=False))
    loaded = LoadedModel("plain", "memory", model.eval(), tokenizer, None, None)
    plain = measure_interpretability(loaded, tasks, text, counts=counts)
    centers = model.get_output_embeddings().weight.data
    line = torch.randn(300, 1) ** 9 @ torch.randn(1, 32)  # a few rows far out, nearly all on one point of a line
    centers.copy_(1e-3 * centers + line)
    loaded = LoadedModel("collapsed", "memory", model, tokenizer, None, None)
    collapsed = measure_interpretability(loaded, tasks, text, counts=counts)
    assert collapsed.row["flags"]
    assert collapsed.row["flags"][0].startswith("centers: nearly one line")
    assert plain.row["flags"] == []
    assert "rare_tokens" in plain.measures
    measures = [{"nats": (5.0, np.empty(0))} | reading.measures for reading in (collapsed, plain)]
    paper = [paper_losses(reading.row) for reading in (collapsed, plain)]
    ratios = [collapsed.ratios, plain.ratios]
    [found] = compare_arms({"collapsed": [0], "plain": [1]}, measures, ratios, paper, [0, 0])["differences"]
    assert found["paper_tasks"]["lower"] == ["made up"]
    assert {row["better"] for row in found["headlines"].values()} <= {"plain", None}
    assert found["tasks"]["won"] == []


def test_a_model_of_one_center_is_behind_in_class_centers(tiny_config, token_folder):
    tokenizer, text = load_tokenizer(token_folder / "tokenizer"), torch.randint(0, 12, (1200,)).numpy()
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300, tie_word_embeddings=False)).eval()
    model.get_output_embeddings().weight.data[:] = torch.randn(32)
    loaded = LoadedModel("point", "memory", model, tokenizer, None, None)
    measured = measure_interpretability(loaded, {"one pair": [("cat", "dog")]}, text)
    assert measured.row["class_centers"]["flag"] == "the centers are collapsed"
    other = {key: (0.5, np.full(500, 0.5)) for key in ("class_centers", "own_center")}
    measures = [{"nats": (5.0, np.empty(0))} | held for held in (measured.measures, other)]
    [found] = compare_arms({"point": [0], "other": [1]}, measures, [{}] * 2, [{}] * 2, [0, 0])["differences"]
    headlines = found["headlines"]
    assert [headlines[key]["better"] for key in other] == ["other", "other"]
