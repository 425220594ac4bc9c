"""The lens: its last layer is the model's own prediction, whatever the head."""

import pytest
import torch
from PIL import Image
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from harmonic_gpt import HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.evaluation.interpretability import geometry_rows, measure_interpretability
from harmonic_gpt.evaluation.lens import draw, lens
from harmonic_gpt.runs.load import LoadedModel

MODELS = ["harmonic", "gpt2 tied", "llama untied", "neox untied", "opt tied"]


@pytest.fixture(params=MODELS)
def loaded(request, tiny_config, token_folder):
    sizes = {"vocab_size": 300, "bos_token_id": 299, "eos_token_id": 299}
    if request.param == "harmonic":
        model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300))
    elif request.param == "gpt2 tied":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes))
    else:
        family, _, tying = request.param.partition(" ")
        name, config = {
            "llama": (LlamaForCausalLM, LlamaConfig),
            "neox": (GPTNeoXForCausalLM, GPTNeoXConfig),
            "opt": (OPTForCausalLM, OPTConfig),
        }[family]
        inner = {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {"intermediate_size": 64}
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
        model = name(config(**shape, **inner, tie_word_embeddings=tying == "tied", **sizes))
    return LoadedModel(request.param, "memory", model.eval(), load_tokenizer(token_folder / "tokenizer"), None, None)


def test_the_last_layer_is_the_prediction(loaded, tmp_path):
    read = lens(loaded, "The cat sees", top=4)
    ids = loaded.tokenizer("The cat sees", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = loaded.model(input_ids=ids).logits[0].topk(4).indices
    assert read.nearest[-1].tolist() == expected.tolist()
    assert read.nearest.shape == (3, ids.shape[1], 4)
    assert read.by == ("distance" if loaded.name == "harmonic" else "dot product")
    draw(read, tmp_path / "lens.png", "title")
    assert Image.open(tmp_path / "lens.png").size[0] > 300


@pytest.mark.parametrize(
    ("head", "prior", "by"),
    [
        ("harmonic", True, "distance"),
        ("cosine_harmonic", False, "own distance"),
        ("mahalanobis_diagonal", False, "own distance"),
        ("standard", True, "dot product"),
    ],
)
def test_the_head_is_read_with_its_metric_and_its_prior(tiny_config, token_folder, head, prior, by):
    model = HarmonicGPT2ForCausalLM(tiny_config(vocab_size=300, head=head, prior=prior, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(3 * torch.rand(300, 1) + 0.3)
        if prior:
            model.lm_head.log_prior.copy_(2 * torch.randn(300))
        if head == "mahalanobis_diagonal":
            model.lm_head.factors.copy_(3 * torch.rand(32))
    tokenizer = load_tokenizer(token_folder / "tokenizer")
    read = lens(LoadedModel("model", "memory", model.eval(), tokenizer, None, None), "The cat sees", top=2)
    with torch.no_grad():
        expected = model(input_ids=tokenizer("The cat sees", return_tensors="pt").input_ids).logits[0].topk(2).indices
    assert read.nearest[-1].tolist() == expected.tolist()
    assert read.by == by
    if not prior:
        assert (read.scores[..., 0] <= read.scores[..., 1]).all()  # the likeliest token is the nearest


def test_geometry_of_any_architecture(loaded):
    names = [(" cat", " dog"), (" bird", " house"), (" river", " tree"), (" sees", " likes"), (" finds", " leaves")]
    words = {"animals": [(a.strip(), b.strip()) for a, b in names]}
    text = torch.randint(0, 299, (600,)).numpy()
    row = measure_interpretability(loaded, words, text, tokens=4000).row
    assert row["tied"] != loaded.name.endswith("untied")
    assert len(row["layers"]) == 3
    assert {r["where"] for r in geometry_rows(row)} >= {"centers", "layer 0", "layer 1", "layer 2"}
    assert [layer["agreement"] <= 1 for layer in row["lens"]["layers"]] == [True, True]
    assert row["lens"]["fitted_on"] > 0
    assert row["label_distance"]["label_over_shuffled"] > 0
