"""The harmonic head in models of other families, all with random weights and of a few thousand parameters."""

import math

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harmonic_gpt import harmonic_cross_entropy
from harmonic_gpt.errors import InputError
from harmonic_gpt.interop.export import export
from harmonic_gpt.model.harmonic_head import HarmonicHead
from harmonic_gpt.runs import load
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.swap_head import swap_head
from tests.aligned import aligned

SIZE = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1}
IDS = torch.arange(24).view(2, 12)


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZE)).eval()


def qwen():
    return Qwen3ForCausalLM(Qwen3Config(**SIZE, tie_word_embeddings=True)).eval()


@pytest.mark.parametrize("make", [llama, qwen])
def test_logits_and_loss_are_the_formulas(make):
    model = make()
    head = swap_head(model, exponent=7.0, hidden_scale=0.3)
    output = model(IDS, labels=IDS)
    x = 0.3 * model.model(IDS).last_hidden_state.double()  # (B, T, D)
    d = (x[..., None, :] - model.lm_head.weight.double()).norm(dim=-1)  # (B, T, V)
    expected = (-7.0 * d.log()).log_softmax(-1)
    assert (output.logits - expected).abs().max() < 1e-4
    nats = -expected[:, :-1].gather(-1, IDS[:, 1:, None]).mean()
    assert output.loss.item() == pytest.approx(nats.item(), rel=1e-5)
    hidden = model.model(IDS[:, :-1]).last_hidden_state
    assert head(hidden, IDS[:, 1:]).item() == pytest.approx(nats.item(), rel=1e-5)
    assert harmonic_cross_entropy(0.3 * hidden, head.weight, IDS[:, 1:], exponent=7.0).item() == pytest.approx(
        nats.item(), rel=1e-5
    )


@pytest.mark.parametrize("make", [llama, qwen])
def test_trains_generates_saves_and_loads(make, tmp_path):
    model = make()
    swap_head(model)
    assert model.config.harmonic_head["constants"]["exponent"] == pytest.approx(32**0.5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    made = model.generate(IDS[:1, :4], max_new_tokens=4, do_sample=False)
    assert made[0].tolist() == list(range(8))  # it has learned to count
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    swap_head(again)
    assert isinstance(again.lm_head, HarmonicHead)
    evaluated = load_model(str(tmp_path / "model"))  # must not take the weights for a dot product's
    assert evaluated.head == "harmonic"
    with pytest.raises(InputError, match="has its head by swap_head"):
        export(str(tmp_path / "model"), tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(aligned(evaluated.model)(IDS).logits, model.eval()(IDS).logits)
        assert torch.equal(aligned(again)(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("name", ["cosine_harmonic", "mahalanobis_low_rank", "standard", "lorentz_harmonic"])
def test_any_head_is_saved_and_loaded_with_what_it_learned(name, tmp_path):
    model = llama()
    plain = model(IDS).logits
    learn = ["prior", "temperature" if name == "standard" else "exponent"]
    head = swap_head(model, head=name, learn=learn, prior=True)
    if name == "standard":
        torch.testing.assert_close(model(IDS).logits, plain)
    else:
        assert (model(IDS).logits.logsumexp(-1).abs() < 1e-4).all()
    model(IDS, labels=IDS).loss.backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert again.head == name
    assert torch.equal(aligned(again.model)(IDS).logits, model(IDS).logits)
    assert swap_head(model, head="harmonic").name == "harmonic"  # back, with nothing of the other head
    assert model.config.harmonic_head["learn"] == []


def learned_model():
    """A model whose harmonic head has learned an exponent of 9 and a prior, from a start of 4 and zeros."""
    model = llama()
    head = swap_head(model, exponent=4.0, learn=["exponent", "prior"], prior=True)
    with torch.no_grad():
        head.log_exponent.fill_(math.log(9.0))
        head.log_prior.normal_()
    return model


def test_swapping_again_keeps_what_was_learned():
    model = learned_model()
    logits = model(IDS).logits
    assert swap_head(model).spec.exponent == pytest.approx(9.0)
    assert torch.equal(model(IDS).logits, logits)
    fixed = swap_head(model, learn=[])  # what is no longer learned stays where it is
    assert not dict(fixed.named_parameters()).keys() - {"weight"}
    torch.testing.assert_close(model(IDS).logits, logits)
    assert swap_head(model, exponent=5.0, learn=["exponent"]).spec.exponent == pytest.approx(5.0)


@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
def test_what_was_learned_comes_from_the_hub_too(shard_size, tmp_path, monkeypatch):
    model, commit = learned_model(), "1" * 40
    repository = tmp_path / "models--ann--swapped"  # as the Hub's client keeps it; the tests are offline
    model.save_pretrained(repository / "snapshots" / commit, max_shard_size=shard_size)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "load_tokenizer", lambda _: None)  # the repository has none
    loaded = load_model("ann/swapped")
    assert loaded.weights_sha256 == load_model(str(repository / "snapshots" / commit)).weights_sha256 is not None
    again = loaded.model
    (repository / "refs" / "main").write_text("2" * 40)  # moved on, to what is not in the cache
    swapped = AutoModelForCausalLM.from_pretrained("ann/swapped", revision=commit)
    swap_head(swapped, revision=commit)
    for loaded in (again, swapped):
        assert torch.equal(aligned(loaded)(IDS).logits, model(IDS).logits)


def test_learned_numbers_that_are_not_found_are_no_start_values(tmp_path):
    learned_model().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = model.lm_head
    tensors = load_file(tmp_path / "model/model.safetensors")
    save_file({name: tensors[name] for name in tensors if "log_" not in name}, tmp_path / "model/model.safetensors")
    with pytest.raises(
        InputError, match="has learned \\(log_exponent, log_prior\\) is not in the safetensors files of"
    ):
        swap_head(model)
    (tmp_path / "model/model.safetensors").write_text("no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        swap_head(model)
    assert model.lm_head is before
    with pytest.raises(InputError, match="a model that was not loaded"):
        swap_head(LlamaForCausalLM(LlamaConfig(**SIZE, harmonic_head=learned_model().config.harmonic_head)))


def test_models_that_do_more_after_the_head_are_refused_and_left_alone():
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=30.0))
    before = capped.lm_head
    with pytest.raises(InputError, match="changes its logits after the head"):
        swap_head(capped)
    assert capped.lm_head is before
    assert not hasattr(capped.config, "harmonic_head")
    biased = GPTJForCausalLM(GPTJConfig(vocab_size=61, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=32))
    with pytest.raises(InputError, match="has a bias"):
        swap_head(biased)


@pytest.mark.parametrize("constant", [{"exponent": 0.0}, {"exponent": float("nan")}, {"hidden_scale": 0.0}])
def test_constants_must_be_positive(constant):
    model = llama()
    before = model.lm_head
    with pytest.raises(InputError, match=f"{next(iter(constant))}: expected a number between"):
        swap_head(model, **constant)
    assert model.lm_head is before


def test_heads_and_constants_that_do_not_exist_are_named():
    for options, message in (
        ({"head": "cosine"}, "did you mean cosine_harmonic"),
        ({"head": "cosine_harmonic", "rank": 3}, "cosine_harmonic has no constant rank"),
        ({"learn": ["prior"]}, "without a prior"),
    ):
        with pytest.raises(InputError, match=message):
            swap_head(llama(), **options)


def test_modes_of_the_parts_stay_as_they_were():
    """Somebody trains the head alone, with the trunk in evaluation mode."""
    model = llama().train()
    model.model.eval()
    modes = {name: module.training for name, module in model.named_modules() if name != "lm_head"}
    swap_head(model)
    assert {name: module.training for name, module in model.named_modules() if name != "lm_head"} == modes


def test_an_edit_within_a_generation_is_seen_at_once():
    """Distances are of the centers as they are: nothing of them is kept from one token to the next."""
    model = llama()
    swap_head(model, exponent=7.0)
    with torch.no_grad():
        begun = model(IDS[:, :6], use_cache=True)
        model.lm_head.weight.data.mul_(1.5)
        cached = model(IDS[:, 6:7], past_key_values=begun.past_key_values, use_cache=True).logits
        x = model.lm_head.hidden_scale * model.model(IDS[:, :7]).last_hidden_state[:, -1:].double()
    d = (x[..., None, :] - model.lm_head.weight.double()).norm(dim=-1)
    assert (cached - (-7.0 * d.log()).log_softmax(-1)).abs().max() < 1e-4
