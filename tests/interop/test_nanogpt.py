"""Checkpoints are written here in nanoGPT's format; the truth is the formulas of the paper and of nanoGPT, in float64,
straight down."""

import math
import os

import pytest
import torch
from torch.nn import functional as F

from harmonic_gpt.__main__ import main
from harmonic_gpt.errors import InputError
from harmonic_gpt.interop.nanogpt import import_nanogpt
from harmonic_gpt.runs.load import load_model

MARK = f"/tmp/harmonic-gpt-test-{os.getpid()}"  # what a checkpoint with code would leave
ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "bias": True, "vocab_size": 37, "dropout": 0.0}


def weights(prefix: str = "", bias: bool = True, tied: bool = True, rows: int = 37, masks: bool = False) -> dict:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape, scale=0.3):
        return torch.randn(*shape, generator=generator) * scale

    d, state = ARGS["n_embd"], {}
    state["transformer.wte.weight"], state["transformer.wpe.weight"] = normal(rows, d), normal(ARGS["block_size"], d)
    for i in range(ARGS["n_layer"]):
        h = f"transformer.h.{i}"
        for name, shape in (
            ("attn.c_attn", (3 * d, d)),
            ("attn.c_proj", (d, d)),
            ("mlp.c_fc", (4 * d, d)),
            ("mlp.c_proj", (d, 4 * d)),
        ):
            state[f"{h}.{name}.weight"] = normal(*shape)
            if bias:
                state[f"{h}.{name}.bias"] = normal(shape[0])
        for name in ("ln_1", "ln_2"):
            state[f"{h}.{name}.weight"] = 1 + normal(d)
            if bias:
                state[f"{h}.{name}.bias"] = normal(d)
        if masks:
            state[f"{h}.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
    state["transformer.ln_f.weight"] = 1 + normal(d)
    if bias:
        state["transformer.ln_f.bias"] = normal(d)
    state["lm_head.weight"] = state["transformer.wte.weight"] if tied else normal(rows, d)
    return {prefix + name: tensor for name, tensor in state.items()}


def exact_gelu(z):
    """Hendrycks and Gimpel 2016, as nanoGPT's nn.GELU()."""
    return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def tanh_gelu(z):
    """Their approximation, as in GPT-2 and in the paper's code."""
    return z * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def hidden_states(state: dict, ids: torch.Tensor, gelu=exact_gelu, inverse_layer: bool = False) -> torch.Tensor:
    """nanoGPT's trunk in float64: nn.Linear layout, no bias where there is none. (T, D)"""
    s = {name.removeprefix("_orig_mod."): tensor.double() for name, tensor in state.items()}

    def linear(x, name):
        return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s.get(f"{name}.bias"), 1e-5)

    x = s["transformer.wte.weight"][ids] + s["transformer.wpe.weight"][: len(ids)]
    n_head, head_size = ARGS["n_head"], ARGS["n_embd"] // ARGS["n_head"]
    for i in range(ARGS["n_layer"]):
        h = f"transformer.h.{i}"
        q, k, v = (
            linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").view(len(ids), 3, n_head, head_size).permute(1, 2, 0, 3)
        )
        scores = q @ k.mT / math.sqrt(head_size) / (i + 1 if inverse_layer else 1)
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).permute(1, 0, 2).reshape(len(ids), -1)
        x = x + linear(mixed, f"{h}.attn.c_proj")
        z = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        x = x + linear(gelu(z), f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f")


def write(tmp_path, state: dict, **arguments):
    path = tmp_path / "ckpt.pt"
    checkpoint = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": ARGS | arguments,
        "iter_num": 7,
    }
    torch.save(checkpoint | {"best_val_loss": torch.tensor(3.1), "config": {"dataset": "openwebtext"}}, path)
    return path


def logits(folder, ids) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(folder)).model.double()(ids[None]).logits[0]


IDS = torch.arange(10) * 3 % 37


def published_probabilities(x, w, pow_n) -> torch.Tensor:
    """The paper's code: squared distances over n_embd, over their smallest in the row, to the power -pow_n,
    normalised."""
    d2 = torch.cdist(x, w, compute_mode="donot_use_mm_for_euclid_dist").square() / x.shape[-1]
    powers = (d2 / d2.min(-1, keepdim=True).values) ** -pow_n
    return powers / powers.sum(-1, keepdim=True)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inverse_layer", [True, False])
def test_the_papers_checkpoint_gives_the_published_probabilities(tmp_path, prefix, bias, tied, inverse_layer):
    state = weights(prefix, bias, tied)
    path = write(tmp_path, state, bias=bias, scale_attn_by_inverse_layer_idx=inverse_layer)
    imported = import_nanogpt(path, tmp_path / "out", squared_distance_exponent=4)
    hidden, centers = hidden_states(state, IDS, tanh_gelu, inverse_layer), state[prefix + "lm_head.weight"].double()
    p = published_probabilities(hidden, centers, 4)
    ours = logits(imported.out, IDS)
    torch.testing.assert_close(ours, p.log(), rtol=1e-6, atol=1e-9)
    assert "activation: the tanh form of GELU, as in the paper's code" in imported.notes


def test_the_two_activations_can_be_told_apart():
    """By ten thousand times the tolerance of the comparisons here."""
    state = weights()
    exact, tanh = (hidden_states(state, IDS, gelu) for gelu in (exact_gelu, tanh_gelu))
    assert (exact - tanh).abs().max() > 1e-4


def test_the_two_conventions_of_the_exponent(tmp_path):
    path = write(tmp_path, weights())
    import_nanogpt(path, tmp_path / "distance", exponent=8)
    import_nanogpt(path, tmp_path / "squared", squared_distance_exponent=4)
    import_nanogpt(write(tmp_path, weights(), pow_n=4), tmp_path / "recorded")
    assert torch.equal(logits(tmp_path / "distance", IDS), logits(tmp_path / "squared", IDS))
    assert torch.equal(logits(tmp_path / "distance", IDS), logits(tmp_path / "recorded", IDS))


def test_standard_checkpoint(tmp_path):
    state = weights(masks=True)
    imported = import_nanogpt(write(tmp_path, state), tmp_path / "out", standard=True)
    expected = hidden_states(state, IDS) @ state["lm_head.weight"].double().T
    torch.testing.assert_close(logits(imported.out, IDS), expected, rtol=1e-6, atol=1e-9)
    assert "activation: the exact GELU, as in nanoGPT" in imported.notes


def test_the_papers_standard_checkpoint(tmp_path):
    state = weights()
    import_nanogpt(write(tmp_path, state, scale_attn_by_inverse_layer_idx=False), tmp_path / "out", standard=True)
    expected = hidden_states(state, IDS, tanh_gelu) @ state["lm_head.weight"].double().T
    torch.testing.assert_close(logits(tmp_path / "out", IDS), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("distance", ["chebyshev", "manhattan_fast", "cosine_simple", "canberra_standard"])
def test_distances_in_other_forms_are_refused(tmp_path, distance):
    path = write(tmp_path, weights(), scale_attn_by_inverse_layer_idx=False, distance=distance)
    with pytest.raises(InputError, match=f"measures the distance '{distance}'"):
        import_nanogpt(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def follow_up_probabilities(distance: str, x, w, state) -> torch.Tensor:
    """Distances and powers as arXiv 2603.10225 and its code have them, written down from there: (T, V)."""
    width = x.shape[-1]
    cosines = (x / x.norm(dim=-1, keepdim=True)) @ (w / w.norm(dim=-1, keepdim=True)).T
    if distance.startswith("cosine_temp_scale"):
        return (cosines / 0.3).softmax(-1)
    if distance.startswith("mahalanobis"):
        metric = {
            "mahalanobis_diagonal": lambda: torch.diag(state["lm_head.log_diag_cov_inv"].double().exp() + 1e-4),
            "mahalanobis_cholesky": lambda: (
                state["lm_head.chol_factor"].double().tril() @ state["lm_head.chol_factor"].double().tril().T
            ),
            "mahalanobis_standard": lambda: state["lm_head.cov_inv"].double() + 0.0101 * torch.eye(width),
        }[distance]()
        difference = x[:, None] - w
        powers = torch.einsum("tvd,de,tve->tv", difference, metric, difference).sqrt() ** -1
    elif distance == "cosine":
        powers = ((1 - cosines) / (1 - cosines).min(-1, keepdim=True).values) ** -width
    else:
        order = {"manhattan_long": 1.0, "minkowski_l2": 2.0, "minkowski_l1_5": 1.5}[distance]
        d = (x[:, None] - w).abs().pow(order).sum(-1).pow(1 / order)
        powers = (d / d.min(-1, keepdim=True).values) ** -width
    return powers / powers.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "distance",
    [
        "cosine",
        "cosine_temp_scale_0_3",
        "manhattan_long",
        "minkowski_l2",
        "minkowski_l1_5",
        "mahalanobis_diagonal",
        "mahalanobis_cholesky",
        "mahalanobis_standard",
    ],
)
def test_the_follow_ups_distances_give_its_probabilities(tmp_path, distance):
    state, width = weights(), ARGS["n_embd"]
    factor = torch.eye(width) + 0.1 * torch.rand(width, width)
    state |= {
        "mahalanobis_diagonal": {"lm_head.log_diag_cov_inv": torch.randn(width)},
        "mahalanobis_cholesky": {"lm_head.chol_factor": factor},
        "mahalanobis_standard": {"lm_head.cov_inv": factor @ factor.T},
    }.get(distance, {})
    path = write(tmp_path, state, scale_attn_by_inverse_layer_idx=False, distance=distance)
    imported = import_nanogpt(path, tmp_path / "out")
    hidden, centers = hidden_states(state, IDS, tanh_gelu), state["lm_head.weight"].double()
    expected = follow_up_probabilities(distance, hidden, centers, state)
    torch.testing.assert_close(logits(imported.out, IDS).log_softmax(-1), expected.log(), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="options say otherwise"):
        import_nanogpt(path, tmp_path / "other", squared_distance_exponent=16.0)


def test_the_follow_ups_euclidean_head_and_its_baseline(tmp_path):
    state = weights()
    hidden, centers = hidden_states(state, IDS, tanh_gelu), state["lm_head.weight"].double()
    baseline = write(tmp_path, state, scale_attn_by_inverse_layer_idx=False, distance="baseline")
    imported = import_nanogpt(baseline, tmp_path / "baseline")
    torch.testing.assert_close(logits(imported.out, IDS), hidden @ centers.T, rtol=1e-6, atol=1e-9)
    assert any("clamps" in note for note in imported.notes)
    with pytest.raises(InputError, match="options say otherwise"):
        import_nanogpt(baseline, tmp_path / "other", exponent=8)
    euclidean = write(tmp_path, state, scale_attn_by_inverse_layer_idx=False, distance="euclidean")
    import_nanogpt(euclidean, tmp_path / "euclidean", squared_distance_exponent=16)
    p = published_probabilities(hidden, centers, 16)
    torch.testing.assert_close(logits(tmp_path / "euclidean", IDS), p.log(), rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match="options say otherwise"):
        import_nanogpt(euclidean, tmp_path / "other", standard=True)
    with pytest.raises(InputError, match="which head"):
        import_nanogpt(euclidean, tmp_path / "other")


def test_padding_rows_are_left_out_or_kept(tmp_path):
    state = weights(rows=48)
    path = write(tmp_path, state, vocab_size=48)
    import_nanogpt(path, tmp_path / "out", exponent=8, vocab_size=37)
    import_nanogpt(path, tmp_path / "all", exponent=8)
    p = published_probabilities(hidden_states(state, IDS), state["lm_head.weight"].double(), 4)
    torch.testing.assert_close(logits(tmp_path / "all", IDS), p.log(), rtol=1e-6, atol=1e-9)
    p = p[:, :37] / p[:, :37].sum(-1, keepdim=True)
    torch.testing.assert_close(logits(tmp_path / "out", IDS), p.log(), rtol=1e-6, atol=1e-9)


def test_nanogpts_own_padding_is_known(tmp_path):
    imported = import_nanogpt(write(tmp_path, weights(rows=50304), vocab_size=50304), tmp_path / "out", exponent=28)
    config = load_model(str(imported.out)).model.config
    assert (config.vocab_size, config.eos_token_id, config.hidden_scale) == (50257, 50256, 1.0)
    assert any("47 padding rows" in note for note in imported.notes)


TWO = [{"standard": True, "exponent": 2.0}, {"exponent": 2.0, "squared_distance_exponent": 1.0}]


@pytest.mark.parametrize("choice", [{}, *TWO])
def test_asks_for_the_head_when_it_cannot_know(tmp_path, choice):
    with pytest.raises(InputError, match="which head"):
        import_nanogpt(write(tmp_path, weights()), tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Malicious(), "could run code"),
        ({"model": {}}, "model_args"),
        ({"model": {"transformer.wpe.weight": torch.ones(2)}, "model_args": ARGS}, r"no transformer\.wte"),
        ({"model": weights() | {"transformer.h.0.rotary": torch.ones(1)}, "model_args": ARGS}, "does not have"),
        ({"model": weights(), "model_args": ARGS | {"n_embd": 32}}, "model_args say"),
        ({"model": weights(), "model_args": ARGS | {"n_head": 3}}, "no GPT-2 is like that"),
        ({"model": weights(), "model_args": ARGS | {"n_layer": "two"}}, "no GPT-2 is like that: .*n_layer"),
        (
            {"model": {k: v for k, v in weights().items() if "ln_f.weight" not in k}, "model_args": ARGS},
            "ln_f.weight is missing",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        import_nanogpt(tmp_path / "x.pt", tmp_path / "out", exponent=2)
    assert not os.path.exists(MARK)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_command_line(tmp_path, capsys):
    path = write(tmp_path, weights(), unheard_of=3)
    with pytest.raises(SystemExit) as stop:
        main(["import", "nanogpt", str(path), "--out", str(tmp_path / "out"), "--squared-distance-exponent", "28"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "exponent n = 56 on the distance (28 on the squared distance)" in shown
    assert "unheard_of" in shown
    with pytest.raises(SystemExit) as stop:
        main(["import", "nanogpt", str(path), "--out", str(tmp_path / "other")])
    assert stop.value.code == 2
