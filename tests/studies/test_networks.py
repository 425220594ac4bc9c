import pytest
import torch
import torch.nn.functional as F

from harmonic_gpt.studies import networks
from harmonic_gpt.studies.networks import HEAD_KINDS, HEADS, LAYERS, TRANSFORMER_HIDDEN, D


def _parameters(architecture, head="harmonic", seeds=(0, 1, 2), tokens=3):
    return networks.initial_parameters(architecture, head, 11, tokens, list(seeds))


def test_transformer_is_torchs_encoder_with_the_extra_residual():
    p = _parameters("transformer")
    inputs = torch.randint(11, (3, 7, 3))
    ours = networks.hidden_states(p, inputs)
    for m in range(3):
        x = p["embedding"][m][inputs[m]] + p["positions"][m]
        for i in range(LAYERS):
            layer = torch.nn.TransformerEncoderLayer(D, HEADS, TRANSFORMER_HIDDEN, dropout=0.0, batch_first=True)
            layer.load_state_dict({
                "self_attn.in_proj_weight": p[f"{i}.qkv.weight"][m].T,
                "self_attn.in_proj_bias": p[f"{i}.qkv.bias"][m, 0],
                "self_attn.out_proj.weight": p[f"{i}.proj.weight"][m].T,
                "self_attn.out_proj.bias": p[f"{i}.proj.bias"][m, 0],
                "linear1.weight": p[f"{i}.up.weight"][m].T, "linear1.bias": p[f"{i}.up.bias"][m, 0],
                "linear2.weight": p[f"{i}.down.weight"][m].T, "linear2.bias": p[f"{i}.down.bias"][m, 0],
                "norm1.weight": p[f"{i}.norm1.weight"][m, 0], "norm1.bias": p[f"{i}.norm1.bias"][m, 0],
                "norm2.weight": p[f"{i}.norm2.weight"][m, 0], "norm2.bias": p[f"{i}.norm2.bias"][m, 0],
            })  # fmt: skip
            x = x + layer(x)
        torch.testing.assert_close(ours[m], x[:, -1])


def test_mlp_is_the_papers():
    p = _parameters("mlp", tokens=2)
    inputs = torch.randint(11, (3, 5, 2))
    ours = networks.hidden_states(p, inputs)
    for m in range(3):
        x = p["embedding"][m][inputs[m]].flatten(1)  # embeddings concatenated
        x = F.silu(x @ p["hidden.weight"][m] + p["hidden.bias"][m]) @ p["out.weight"][m] + p["out.bias"][m]
        torch.testing.assert_close(ours[m], x)


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_a_model_starts_from_its_seed_alone(architecture):
    together, alone = _parameters(architecture), _parameters(architecture, seeds=[1])
    for name, p in alone.items():
        assert torch.equal(p[0], together[name][1])
    assert not torch.equal(together["embedding"][0], together["embedding"][1])


def test_which_models_are_tied():
    assert "centers" in _parameters("transformer", "harmonic")
    for architecture, head in [("transformer", "standard"), ("mlp", "harmonic"), ("mlp", "standard")]:
        assert "centers" not in _parameters(architecture, head)


def test_exponents_of_the_members():
    """One call serves members of different exponents: p_i proportional to d_i^-n."""
    x, w = torch.randn(2, 4, D, dtype=torch.float64), torch.randn(2, 6, D, dtype=torch.float64)
    n = torch.tensor([1.0, 7.0])
    p = networks.logits("harmonic", x, w, n).softmax(-1)
    d = torch.cdist(x, w)
    for m in range(2):
        unnormalised = d[m] ** -n[m]
        torch.testing.assert_close(p[m], unnormalised / unnormalised.sum(-1, keepdim=True))


@pytest.mark.parametrize("head", ["standard", "euclidean_softmax", "dot_harmax", "spherical"])
def test_other_heads(head):
    x, w = torch.randn(1, 4, D, dtype=torch.float64), torch.randn(1, 6, D, dtype=torch.float64)
    s, d = x @ w.mT, torch.cdist(x, w)
    unit = s / s.norm(dim=-1, keepdim=True)
    expected = {
        "standard": s.softmax(-1),
        "euclidean_softmax": (-d).softmax(-1),
        "dot_harmax": s.square() / s.square().sum(-1, keepdim=True),
        "spherical": (unit.square() + 1e-4) / (unit.square() + 1e-4).sum(-1, keepdim=True),
    }
    torch.testing.assert_close(networks.logits(head, x, w, torch.tensor([2.0])).softmax(-1), expected[head])
    assert head in HEAD_KINDS


def test_contrastive_loss_against_loops():
    x = torch.randn(1, 5, D, dtype=torch.float64) * 0.2
    labels, weight = torch.tensor([[0, 1, 0, 1, 1]]), torch.tensor([[1.0, 1, 1, 1, 0]])
    same, other = [], []
    for i in range(4):
        for j in range(4):
            d = (x[0, i] - x[0, j]).norm().item()
            if i != j:
                (same if labels[0, i] == labels[0, j] else other).append(
                    d**2 if labels[0, i] == labels[0, j] else max(0, 1 - d) ** 2
                )
    expected = sum(same) / len(same) + sum(other) / len(other)
    assert networks.contrastive_loss(x, labels, weight.double()).item() == pytest.approx(expected)


def test_class_means():
    hidden = torch.randn(1, 4, D)
    means, known = networks.class_means(hidden, torch.tensor([[2, 0, 2, 1]]), torch.tensor([[1.0, 1, 1, 0]]), 3)
    torch.testing.assert_close(means[0, 2], (hidden[0, 0] + hidden[0, 2]) / 2)
    assert known.tolist() == [[True, False, True]]
