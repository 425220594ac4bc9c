import json

import pytest
import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from harmonic_gpt import HarmonicGPT2Config
from harmonic_gpt.data.sampler import Sampler
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.likelihood import block_nats
from harmonic_gpt.runs.load import load_model
from harmonic_gpt.swap_head import swap_head
from harmonic_gpt.training import init_from
from harmonic_gpt.training.init_from import _with_weights, fit_head, start_from
from harmonic_gpt.training.loop import train
from harmonic_gpt.training.plan import model_config
from harmonic_gpt.training.setup import setup


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch):
    monkeypatch.setattr(init_from, "FIT_TOKENS", 1024)


@pytest.fixture(scope="module")
def gpt2(token_folder, tmp_path_factory):
    """A plain GPT-2 of another program, a little trained: tied, 48 positions, gelu_new."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=48, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = GPT2LMHeadModel(config)
    tokens = open_token_folder(token_folder).tokens("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = torch.from_numpy(tokens.read(step * 384, 384)).view(8, 48)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("gpt2") / "gpt2"
    model.save_pretrained(path)
    return path


def start(run_config, path, folder, log_prior=None, **overrides):
    config = run_config(model__init_from=path, **overrides)
    data = open_token_folder(folder)
    return start_from(config, model_config(config, data.vocab_size, None), data, Accelerator(cpu=True), log_prior)


def saved_as(head_config, gpt2, path):
    """The weights of `gpt2` under a head of `head_config`, whose learned numbers and prior have moved on; its model."""
    target = HarmonicGPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=48, **head_config)
    model = _with_weights(load_model(str(gpt2)).model, target, with_head=False)
    with torch.no_grad():
        for name, tensor in model.lm_head.state_dict().items():
            if name != "weight":
                tensor.add_(0.3 * torch.randn_like(tensor))
    model.save_pretrained(path)
    return model


def mean_nats(model, folder) -> float:
    ids = torch.from_numpy(open_token_folder(folder).tokens("val").read(0, 33 * 40)).view(40, 33)
    with torch.no_grad():
        return block_nats(model.eval(), ids).item() / (40 * 32)


@pytest.mark.parametrize("tied", [True, False])
def test_harmonic_start_is_near_the_standard_model_and_far_below_a_fresh_one(gpt2, run_config, token_folder, tied):
    before = mean_nats(load_model(str(gpt2)).model, token_folder)
    model, text = start(run_config, gpt2, token_folder, model__exponent="fit", model__tie_word_embeddings=tied)
    after = mean_nats(model, token_folder)
    assert before < 4.0  # it has learned something: 300 tokens, ln 300 = 5.7
    assert after < before + 0.1
    assert "source model" in text
    assert f"exponent {model.config.exponent:g}" in text
    assert model.config.exponent <= 64
    assert model.lm_head.spec.exponent == model.config.exponent


def test_each_attempt_is_at_least_as_good_as_the_one_before(gpt2, run_config, token_folder):
    data, source = open_token_folder(token_folder), load_model(str(gpt2)).model
    config = run_config(model__init_from=gpt2)
    ids = torch.from_numpy(data.tokens("train").read(0, 33 * 16)).view(16, 33)
    target = model_config(config, 300, None)
    start = fit_head(source, ids, target, fit_exponent=False)
    attempts = list(start.tried.values())
    assert attempts[1] >= attempts[2] >= attempts[3]
    assert start.exponent == pytest.approx(target.head_exponent, rel=1e-5)
    # What is told is what the model then does
    target.hidden_scale, target.exponent, target.activation_function = start.hidden_scale, start.exponent, "gelu_new"
    model = _with_weights(source, target, with_head=False)
    with torch.no_grad():
        model.transformer.ln_f.bias += start.shift
        assert block_nats(model.eval(), ids).item() / (16 * 32) == pytest.approx(attempts[3], rel=1e-4)


def test_the_trunk_is_the_sources(gpt2, run_config, token_folder):
    model, _ = start(run_config, gpt2, token_folder)
    weights = load_model(str(gpt2)).model.state_dict()
    for name, value in model.named_parameters():
        if name != "transformer.ln_f.bias":
            assert torch.equal(value, weights[name][: len(value)]), name
    assert model.config.n_positions == 32  # of the source's 48


def test_deterministic(gpt2, run_config, token_folder):
    one, two = (start(run_config, gpt2, token_folder)[0] for _ in range(2))
    assert one.config.hidden_scale == two.config.hidden_scale
    assert torch.equal(one.transformer.ln_f.bias, two.transformer.ln_f.bias)


def test_euclidean_softmax_is_fitted_too(gpt2, run_config, token_folder):
    model, _ = start(run_config, gpt2, token_folder, model__normalization="softmax")
    assert mean_nats(model, token_folder) < 5.0


FITTED_AS_ASKED = [
    {"model__head": "euclidean_softmax", "model__head_constants": "{temperature: 0.1}"},
    {"model__head": "harmonic", "model__prior": "uniform", "log_prior": torch.linspace(-4.0, 0.0, 300)},
    {"model__head": "harmonic", "model__learn": "[hidden_scale]"},
    {"model__head": "harmonic", "model__exponent": 80.0},  # above 2 n_embd, where a fitted one ends
]


@pytest.mark.parametrize("asked", FITTED_AS_ASKED)
def test_a_model_starts_at_the_loss_that_is_told(gpt2, run_config, token_folder, tmp_path, asked):
    saved_as({"head": "standard", "learn": ["hidden_scale"]}, gpt2, tmp_path / "source")
    model, text = start(run_config, tmp_path / "source", token_folder, **asked)
    tokens = open_token_folder(token_folder).tokens("train")
    ids = torch.from_numpy(Sampler(tokens, 32, 32, seed=0).batch(0))  # FIT_TOKENS of them
    with torch.no_grad():
        nats = block_nats(model.eval(), ids).item() / (32 * 32)
    assert nats == pytest.approx(float(text.rsplit(" ", 1)[1]), abs=1e-3)
    if "model__exponent" in asked:
        assert model.config.exponent == 80.0


@pytest.mark.parametrize(
    "asked", [{}, {"model__prior": "uniform", "model__learn": "[prior, exponent]", "log_prior": torch.zeros(300)}]
)
def test_the_same_head_goes_on_with_all_that_it_has_learned(gpt2, run_config, token_folder, tmp_path, asked):
    learned = {"head": "harmonic", "learn": ["exponent", "hidden_scale", "prior"], "prior": True}
    source = saved_as(learned, gpt2, tmp_path / "source")
    model, text = start(run_config, tmp_path / "source", token_folder, **asked)
    assert text.endswith("and its prior")
    assert torch.equal(model.lm_head.log_prior, source.lm_head.log_prior)
    assert mean_nats(model, token_folder) == pytest.approx(mean_nats(source, token_folder), rel=1e-5)


def test_a_run_keeps_and_tells_the_prior_and_the_numbers_of_its_weights(
    gpt2, run_config, token_folder, tmp_path, capfd
):
    learned = {"head": "harmonic", "learn": ["exponent", "prior"], "prior": True}
    source = saved_as(learned, gpt2, tmp_path / "source").lm_head
    config = run_config(model__init_from=tmp_path / "source", model__prior="uniform", model__learn="[exponent, prior]")
    run = setup(config, resume=False)
    run.tracker.close()
    assert torch.equal(run.bare_model.lm_head.log_prior, source.log_prior)
    assert f"head:       harmonic (exponent {source.spec.exponent:.4g}), learned" in capfd.readouterr().err


def test_a_head_of_swap_head_is_no_standard_one(gpt2, run_config, token_folder, tmp_path):
    source = load_model(str(gpt2)).model
    swap_head(source, exponent=9.0, hidden_scale=0.05)
    source.save_pretrained(tmp_path / "swapped")
    model, text = start(run_config, tmp_path / "swapped", token_folder)
    assert text.endswith("going on with its harmonic head, exponent 9")
    assert mean_nats(model, token_folder) == pytest.approx(mean_nats(source, token_folder), rel=1e-5)
    with pytest.raises(InputError, match="only harmonic and euclidean_softmax can be fitted"):
        start(run_config, tmp_path / "swapped", token_folder, model__head="standard")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model__head": "standard", "model__head_constants": "{temperature: 0.5}"}, "head_constants={}"),
        ({"model__head": "harmonic", "model__exponent": 5.0}, "exponent=sqrt"),
    ],
)
def test_constants_that_are_not_those_of_the_weights(gpt2, run_config, token_folder, tmp_path, asked, message):
    saved_as({"head": asked["model__head"], "exponent": 4.0}, gpt2, tmp_path / "source")
    with pytest.raises(InputError, match=f"goes on with the .* of its weights, got .*{message}"):
        start(run_config, tmp_path / "source", token_folder, **asked)


def test_trunks_of_other_kinds(run_config, token_folder, tmp_path):
    size = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(n_inner=48, **size)).save_pretrained(tmp_path / "narrow")
    with pytest.raises(InputError, match="n_inner 48; expected 4 n_embd = 128"):
        start(run_config, tmp_path / "narrow", token_folder)
    source = GPT2LMHeadModel(GPT2Config(scale_attn_weights=False, initializer_range=0.5, **size))
    source.save_pretrained(tmp_path / "unscaled")
    model, _ = start(run_config, tmp_path / "unscaled", token_folder, model__head="standard")
    assert mean_nats(model, token_folder) == pytest.approx(mean_nats(source, token_folder), rel=1e-5)


def test_a_run_goes_on_with_a_harmonic_model_and_resumes(gpt2, run_config, token_folder, tmp_path, capfd):
    first = run_config(run_dir=tmp_path / "first", model__init_from=gpt2, model__exponent="fit")
    assert train(first) == 0
    told = capfd.readouterr().err
    fitted = load_model(str(tmp_path / "first")).model.config
    assert "init_from:" in told
    assert f"(exponent {fitted.exponent:.4g}), hidden_scale {fitted.hidden_scale:.4g}," in told
    stored = json.loads((tmp_path / "first/latest/config.json").read_text())
    assert (stored["exponent"], stored["hidden_scale"]) == (fitted.exponent, fitted.hidden_scale)
    second = run_config(run_dir=tmp_path / "second", model__init_from=tmp_path / "first", train__steps=4)
    assert train(second) == 0
    tuned = load_model(str(tmp_path / "second")).model.config
    assert (tuned.exponent, tuned.hidden_scale) == (fitted.exponent, fitted.hidden_scale)
    again = run_config(run_dir=tmp_path / "first", model__init_from=gpt2, model__exponent="fit")
    capfd.readouterr()
    assert train(again, resume=True) == 0  # finished; the stored constants were loaded
    assert f"(exponent {fitted.exponent:.4g}), hidden_scale {fitted.hidden_scale:.4g}," in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__n_embd": 64}, "--model.n_embd=32"),
        ({"model__n_positions": 64, "train__batch_tokens": 256}, "--model.n_positions=48"),
        (
            {"model__similarity": "dot", "model__normalization": "harmax"},
            "only harmonic and euclidean_softmax can be fitted",
        ),
    ],
)
def test_settings_that_contradict_the_weights(gpt2, run_config, token_folder, overrides, message):
    with pytest.raises(InputError, match=message):
        start(run_config, gpt2, token_folder, **overrides)


def test_settings_that_mean_nothing(run_config):
    with pytest.raises(InputError, match="needs model"):
        run_config(model__exponent="fit")
    with pytest.raises(InputError, match="belong to fresh weights"):
        run_config(model__init_from="x", model__hidden_scale=2.0)


def test_another_vocabulary_is_refused(run_config, token_folder, tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=32)).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(InputError, match="knows 400 tokens, the data has 300"):
        start(run_config, tmp_path / "other", token_folder)
