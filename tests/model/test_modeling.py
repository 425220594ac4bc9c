"""The model as a citizen of transformers."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM, HarmonicHead
from harmonic_gpt.model import harmonic_head
from harmonic_gpt.model.harmonic_logits import squared_norms
from tests.aligned import aligned
from tests.conftest import HEADS

STANDARD = {"similarity": "dot", "normalization": "softmax"}


@pytest.fixture
def model(tiny_config):
    return HarmonicGPT2ForCausalLM(tiny_config()).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 101, (3, 17))


def test_standard_head_is_gpt2(tiny_config, ids):
    ours = HarmonicGPT2ForCausalLM(tiny_config(**STANDARD))
    theirs = GPT2LMHeadModel(ours.config)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(ids).logits, theirs.eval()(ids).logits)
    for model in (ours.train(), theirs.train()):
        model(ids, labels=ids).loss.backward()
    torch.testing.assert_close(ours(ids, labels=ids).loss, theirs(ids, labels=ids).loss)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("head", HEADS)
def test_training_gives_loss_without_logits_and_evaluation_gives_both(tiny_config, ids, head):
    model = HarmonicGPT2ForCausalLM(tiny_config(similarity=head[0], normalization=head[1]))
    training = model.train()(ids, labels=ids)
    evaluation = model.eval()(ids, labels=ids)
    assert training.logits is None
    assert evaluation.logits.shape == (3, 17, 101)
    torch.testing.assert_close(training.loss, evaluation.loss)
    expected = F.cross_entropy(evaluation.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(evaluation.loss, expected)
    shifted = model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], num_items_in_batch=2, skip_logits=True)
    torch.testing.assert_close(shifted.loss, expected * 48 / 2)
    assert shifted.logits is None


def test_harmonic_logits_are_log_probabilities(model, ids):
    logits = model(ids).logits
    assert (logits <= 0).all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 17))


@pytest.mark.parametrize("tied", [True, False])
def test_matched_initialisation(tiny_config, tied):
    """Hidden states after hidden_scale and centers start with equal norms; the paper's plain start is one config
    away."""
    config = tiny_config(n_embd=64, vocab_size=2000, tie_word_embeddings=tied)
    model = HarmonicGPT2ForCausalLM(config).eval()
    assert model.lm_head.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert model.transformer.wte.weight.std().item() == pytest.approx(64**-0.5 if tied else 0.02, rel=0.02)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    hidden = model.transformer(torch.randint(0, 2000, (2, 20))).last_hidden_state * model.lm_head.hidden_scale
    assert hidden.norm(dim=-1).mean().item() == pytest.approx(model.lm_head.weight.norm(dim=-1).mean().item(), rel=0.05)

    plain = HarmonicGPT2ForCausalLM(tiny_config(n_embd=64, vocab_size=2000, hidden_scale=1.0, center_std=0.02))
    assert plain.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert plain.lm_head.hidden_scale == 1.0
    residual = plain.transformer.h[0].attn.c_proj.weight
    assert residual.std().item() == pytest.approx(0.02 / 4**0.5, rel=0.1)  # GPT-2's own rules still hold elsewhere


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_are_exact(tiny_config, ids, tmp_path, tied):
    config = tiny_config(exponent=11.5, hidden_scale=0.4, tie_word_embeddings=tied)
    model = HarmonicGPT2ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    for loaded in (HarmonicGPT2ForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is HarmonicGPT2ForCausalLM
        assert torch.equal(aligned(loaded)(ids).logits, model(ids).logits)
        assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied
    assert AutoConfig.from_pretrained(tmp_path).head_exponent == 11.5


def test_loads_without_our_package(model, ids, tmp_path):
    model.save_pretrained(tmp_path / "model")
    torch.save(model(ids).logits, tmp_path / "logits.pt")
    torch.save(ids, tmp_path / "ids.pt")
    program = f"""
        import sys
        sys.modules["harmonic_gpt"] = None  # importing it raises ImportError
        import torch
        from transformers import AutoModelForCausalLM
        folder = {str(tmp_path)!r}
        model = AutoModelForCausalLM.from_pretrained(folder + "/model", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        ids = torch.load(folder + "/ids.pt", weights_only=True)
        for parameter in model.parameters():  # out of the file's memory, as tests/aligned.py says
            parameter.data = parameter.data.clone()
        assert torch.equal(model(ids).logits, torch.load(folder + "/logits.pt", weights_only=True))
        assert model.generate(ids[:1], max_new_tokens=3).shape == (1, 20)
    """
    environment = {"PATH": "", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    # The same sums in both processes
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_resize_token_embeddings(tiny_config, ids):
    for tied in (True, False):
        model = HarmonicGPT2ForCausalLM(tiny_config(tie_word_embeddings=tied)).eval()
        before = model.lm_head.weight.detach().clone()
        model.lm_head.label_smoothing, model.lm_head.z_loss, model.lm_head.impl = 0.2, 1e-4, "torch"
        for size in (120, 90):
            model.resize_token_embeddings(size)
            assert (model.lm_head.label_smoothing, model.lm_head.z_loss, model.lm_head.impl) == (0.2, 1e-4, "torch")
            assert type(model.lm_head).__name__ == "HarmonicHead"
            assert model.lm_head.spec.exponent == model.config.head_exponent
            assert model.config.vocab_size == size
            assert model(ids % size).logits.shape[-1] == size
            assert torch.equal(model.lm_head.weight[:90], before[:90])
            assert (model.lm_head.weight is model.transformer.wte.weight) == tied
            model(ids % size, labels=ids % size).loss.backward()
            model.zero_grad()  # transformers shrinks the weight in place and would leave the old gradient


def test_generation_with_and_without_cache(model, ids):
    prompt = ids[:1, :5]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    assert model.generate(prompt, num_beams=3, **options).shape == (1, 13)
    penalised = model.generate(prompt, repetition_penalty=1e6, **options)[0, 5:]
    assert penalised.unique().numel() == 8  # every earlier token is pushed away, the prompt's too
    assert not set(penalised.tolist()) & set(prompt[0].tolist())


def test_changed_weights_are_seen_by_the_next_generation(model, ids):
    """Nothing that depends on the weights is kept between calls, however they were changed."""
    options = {
        "max_new_tokens": 5,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "return_dict_in_generate": True,
    }
    model.generate(ids[:1, :1], **options)
    model.lm_head.weight.data.mul_(
        torch.linspace(0.5, 2, 101)[:, None]
    )  # .data: autograd's version counter does not see it
    fresh = HarmonicGPT2ForCausalLM(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    a, b = (m.generate(ids[:1, :1], output_logits=True, **options) for m in (model, fresh))
    for x, y in zip(a.logits, b.logits, strict=True):
        assert torch.equal(x, y)


def test_norms_of_the_centers_last_for_one_generation_and_see_a_change(model, ids, monkeypatch):
    counted = []
    monkeypatch.setattr(harmonic_head, "squared_norms", lambda rows: counted.append(1) or squared_norms(rows))
    seen, expected = [], []

    class Change(LogitsProcessor):
        """Doubles a center between two tokens; compares the logits with those of a model that never generated."""

        def __call__(self, input_ids, scores):
            fresh = HarmonicGPT2ForCausalLM(model.config).eval()
            fresh.load_state_dict(model.state_dict())
            seen.append(scores.clone())
            expected.append(fresh(input_ids).logits[:, -1])
            if len(seen) == 3:
                model.lm_head.weight[7].mul_(2)  # under no_grad, as an optimizer's step
            return scores

    model.generate(
        ids[:1, :3], max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None,
        logits_processor=LogitsProcessorList([Change()]),
    )  # fmt: skip
    torch.testing.assert_close(torch.cat(seen), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert len(counted) == 2  # at the first token, and after the change
    assert model.lm_head._norms is None
    with pytest.raises(AttributeError):  # from a processor that is none
        model.generate(ids[:1, :3], max_new_tokens=2, logits_processor=LogitsProcessorList([7]))
    assert (model.lm_head._norms, model.lm_head._generations) == (None, 0)


@pytest.mark.parametrize("kind", ["harmonic", "standard", "GPT2LMHeadModel"])
def test_compiles_in_one_graph_with_a_static_cache(tiny_config, ids, kind):
    """Prefill, then one token at a time."""
    config = tiny_config(n_layer=1, **(STANDARD if kind == "standard" else {}))
    model = (GPT2LMHeadModel if kind == "GPT2LMHeadModel" else HarmonicGPT2ForCausalLM)(config).eval()
    torch._dynamo.reset()
    forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    cache = StaticCache(config=config, max_cache_len=24)
    with torch.no_grad():
        logits = [forward(part, past_key_values=cache).logits for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:7])]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids[:, :7]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_float16_weights_evaluate_and_generate(tiny_config, ids, head):
    model = HarmonicGPT2ForCausalLM(tiny_config(similarity=head[0], normalization=head[1])).eval()
    half = HarmonicGPT2ForCausalLM(model.config).half().eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs, exact = half(ids, labels=ids), model(ids, labels=ids)
    assert outputs.logits.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, exact.loss, rtol=1e-2, atol=1e-2)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert half.generate(ids[:1, :5], **options).shape == (1, 9)
    with pytest.raises(ValueError, match="bfloat16"):
        half.train()(ids, labels=ids)


def test_padding_on_the_left_changes_nothing(model, ids):
    prompt = ids[:1, :6]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(10) >= 4).long()[None]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, 6:]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[0, 10:], plain)


def test_logits_to_keep(model, ids):
    # Products of other shapes round differently, and a tied fresh model has hidden states close to a center
    model.double()
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


def test_gradient_checkpointing_gives_the_same_gradients(tiny_config, ids):
    gradients = []
    model = HarmonicGPT2ForCausalLM(tiny_config()).train()
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_weights_still_give_float32_logits(model, ids):
    low = HarmonicGPT2ForCausalLM(model.config).bfloat16().eval()
    low.load_state_dict(model.state_dict())
    logits = low(ids).logits
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_loading_in_bfloat16_rounds_no_logarithm(tiny_config, ids, tmp_path):
    model = HarmonicGPT2ForCausalLM(tiny_config(learn=["exponent"], prior=True))
    with torch.no_grad():
        model.lm_head.log_prior.copy_(torch.linspace(-12, -2, len(model.lm_head.weight)))
        model.lm_head.log_exponent += 0.01
    model.save_pretrained(tmp_path)
    low = HarmonicGPT2ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.lm_head.weight.dtype == torch.bfloat16
    assert low.lm_head.spec == model.lm_head.spec
    assert torch.equal(low.lm_head.log_prior, model.lm_head.log_prior)
    low.train()(ids, labels=ids).loss.backward()
    assert low.lm_head.log_exponent.grad.isfinite()


@pytest.mark.parametrize("head", ["harmonic", "standard"])
def test_hugging_face_trainer_smooths_the_labels_of_the_next_token(tiny_config, tmp_path, head):
    """Of random tokens the next one cannot be learned, the current one can."""
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 20, (64, 12))]
    model = HarmonicGPT2ForCausalLM(tiny_config(head=head))
    arguments = TrainingArguments(
        tmp_path, max_steps=60, per_device_train_batch_size=16, learning_rate=1e-2, label_smoothing_factor=0.1,
        report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    ids = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        repeated = (model.eval()(ids).logits.argmax(-1) == ids).float().mean()
    assert repeated < 0.3


def test_hugging_face_trainer_trains_it(tiny_config, tmp_path):
    rows = [
        {"input_ids": row, "labels": row} for row in torch.randint(0, 5, (16, 12))
    ]  # five tokens of 101: easy to learn
    model = HarmonicGPT2ForCausalLM(tiny_config())
    arguments = TrainingArguments(
        tmp_path, max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=3e-3,
        report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"similarity": "cosine"},
        {"normalization": "max"},
        {"exponent": "cube"},
        {"exponent": -1},
        {"hidden_scale": 0.0},
        {"center_std": -1.0},
    ],
)
def test_impossible_config_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        HarmonicGPT2Config(**fields)


def test_exponent_convention_and_defaults():
    """n is on the distance; "sqrt" is sqrt(n_embd), about 28 for GPT-2 small (paper, section 5)."""
    config = HarmonicGPT2Config()
    assert config.head_exponent == pytest.approx(27.71, abs=0.01)
    assert config.hidden_scale == config.center_std == pytest.approx(768**-0.5)
    standard = HarmonicGPT2Config(**STANDARD)
    assert (standard.hidden_scale, standard.center_std) == (1.0, pytest.approx(768**-0.5))


def test_the_trunk_alone_by_auto_model(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk).__name__ == "HarmonicGPT2Model"
    expected = model.transformer(ids).last_hidden_state
    torch.testing.assert_close(trunk(ids).last_hidden_state, expected, rtol=0, atol=0)
    assert AutoConfig.from_pretrained(tmp_path).auto_map["AutoModel"] == "modeling_harmonic_gpt2.HarmonicGPT2Model"


def test_token_type_ids_are_gpt2s(tiny_config):
    config = tiny_config(similarity="dot", normalization="softmax")
    ours = HarmonicGPT2ForCausalLM(config).eval()
    theirs = GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids, types = torch.randint(101, (2, 12)), torch.arange(12).expand(2, 12) % 3
    torch.testing.assert_close(ours(ids, token_type_ids=types).logits, theirs(ids, token_type_ids=types).logits)
    assert not torch.equal(ours(ids, token_type_ids=types).logits, ours(ids).logits)


@pytest.mark.parametrize(("head", "hidden_scale"), [*((head, None) for head in HEADS), (("dot", "softmax"), 0.5)])
def test_who_looks_for_a_bias_is_told(tiny_config, head, hidden_scale):
    """A bias of None invites other programs to multiply by the weight: right for the unscaled standard head alone."""
    fields = {"similarity": head[0], "normalization": head[1], "hidden_scale": hidden_scale}
    lm_head = HarmonicGPT2ForCausalLM(tiny_config(**fields)).lm_head
    if head == ("dot", "softmax") and hidden_scale is None:
        assert lm_head.bias is None
        assert "bias" not in lm_head.state_dict()
    else:
        assert getattr(lm_head, "bias", None) is None
        with pytest.raises(AttributeError, match=r"would train dot products\. Use transformers' Trainer"):
            lm_head.bias  # noqa: B018


@pytest.mark.parametrize("fields", [{"constants": {"temperature": 2.0}}, {"prior": True}, {"learn": ["hidden_scale"]}])
def test_a_standard_head_that_is_no_plain_product_has_no_bias_of_none(fields):
    assert HarmonicHead(8, 20, head="standard").bias is None
    assert not hasattr(HarmonicHead(8, 20, head="standard", **fields), "bias")


@pytest.mark.parametrize("head", [("euclidean", "harmax"), ("dot", "softmax")])
def test_export_leaves_the_length_free(tiny_config, head):
    """torch.onnx.export fixes a length that the code depends on to that of the example, without a word."""
    lm_head = HarmonicGPT2ForCausalLM(tiny_config(similarity=head[0], normalization=head[1])).lm_head.eval()
    length = torch.export.Dim("length", min=2, max=24)
    program = torch.export.export(lm_head, (torch.randn(1, 5, 32),), dynamic_shapes={"hidden_states": {1: length}})
    longer = torch.randn(1, 20, 32)
    torch.testing.assert_close(program.module()(longer), lm_head(longer))
