"""docs/how-to/clients.md: each block of code in a fresh process, for both heads, in an environment with the clients."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.interop import environments

PAGE = (environments.ROOT / "docs/how-to/clients.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"(?:<!-- environment: (?P<environment>\w+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
PIN = re.compile(r"`([\w-]+)==([\w.]+)`")
# As few as agree: inseq and SAELens want different typeguards
ENVIRONMENTS = {
    "training": ["peft", "trl", "torchao", "optimum-quanto", "bitsandbytes", "nnterp", "nnsight", "inseq", "captum"],
    "export": ["onnx", "onnxruntime", "onnxscript", "executorch", "sae-lens"],
}
OURS = ["transformers", "accelerate"]


def blocks() -> list:
    """Every block of the page: its environment and code, named after its section."""
    found = []
    for title, text in zip(*[iter(SECTION.split(PAGE)[1:])] * 2, strict=True):
        for n, match in enumerate(BLOCK.finditer(text)):
            found.append(pytest.param(match["environment"], match["code"], id=f"{title}-{n}".replace(" ", "_")))
    return found


def test_every_block_and_every_version_is_tested():
    assert all(block.values[0] in ENVIRONMENTS for block in blocks())
    pins = dict(PIN.findall(PAGE.split("\n## ")[0]))
    assert sorted(pins) == sorted([*OURS, *(name for names in ENVIRONMENTS.values() for name in names)])
    for name in OURS:
        assert pins[name] == version(name)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """A function that makes an environment of ENVIRONMENTS, once, and returns its python."""
    made: dict[str, Path | None] = {}
    pins = dict(PIN.findall(PAGE))

    def make(name: str) -> Path:
        if name not in made:
            wanted = [f"{client}=={pins[client]}" for client in ENVIRONMENTS[name]]
            made[name] = environments.extended(tmp_path_factory.mktemp(name) / "venv", *wanted, package=True)
        python = made[name]
        if python is None:
            pytest.skip("the package registry cannot be reached")
        return python

    return make


@pytest.mark.slow
@pytest.mark.parametrize("head", ["harmonic", "standard"])
@pytest.mark.parametrize(("environment", "code"), blocks())
def test_block(environment, code, head, pythons, exported, exported_standard, tmp_path):
    folder = exported if head == "harmonic" else exported_standard
    (tmp_path / "exported").symlink_to(folder)
    print(environments.run(pythons(environment), code, tmp_path, timeout=300))


TRL = """
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTConfig, SFTTrainer

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.interop.trl import with_own_head

HEADS = [("euclidean", "harmax"), ("euclidean", "softmax"), ("dot", "harmax"), ("dot", "softmax")]
tokenizer = AutoTokenizer.from_pretrained("exported")
rows = Dataset.from_dict({"text": ["The cat sees the dog.", "A bird."] * 4})
pairs = Dataset.from_dict({"prompt": ["The cat"], "chosen": [" sees a dog."], "rejected": [" is."]})
plain = {"bf16": False, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": 2, "save_strategy": "no"}


def sft(trainer, model):
    return trainer(
        model, args=SFTConfig("out", **plain), train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )


def statistics(trainer, ids, mask, temperature):
    # From the definition: the model's own logits, all of them
    labels = ids.masked_fill(~mask, -100)
    out = trainer.model(input_ids=ids, labels=labels, fused_lm_head=True)
    with torch.no_grad():
        log_p = (trainer.model(input_ids=ids).logits[:, :-1].double() / temperature).log_softmax(-1)
    kept = mask[:, 1:]
    expected = {
        "log_probs": log_p.gather(-1, ids[:, 1:, None])[..., 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "is_top1": (log_p.argmax(-1) == ids[:, 1:]).double(),
    }
    for name, values in expected.items():
        got = getattr(out, name)
        if got is not None:
            torch.testing.assert_close(got.double(), values * kept, atol=2e-5, rtol=1e-5)
    return out


config = HarmonicGPT2Config.from_pretrained("exported")
names = ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "bos_token_id", "eos_token_id", "pad_token_id"]
sizes = {name: getattr(config, name) for name in names}
for similarity, normalization in HEADS:
    head = {"similarity": similarity, "normalization": normalization, "hidden_scale": 0.5}
    HarmonicGPT2ForCausalLM(HarmonicGPT2Config(**sizes, **head)).save_pretrained("model")
    ids = torch.randint(config.vocab_size - 1, (3, 20))
    mask = torch.rand(3, 20) < 0.7

    trainer = sft(with_own_head(SFTTrainer), HarmonicGPT2ForCausalLM.from_pretrained("model"))
    out = statistics(trainer, ids, mask, 1.0)
    out.loss.backward()
    gradients = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    loss = trainer.model(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss
    torch.testing.assert_close(out.loss, loss)
    loss.backward()
    for ours, theirs in zip(trainer.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours.grad, theirs, atol=1e-5, rtol=1e-4)
    nothing = trainer.model(input_ids=ids, labels=torch.full_like(ids, -100), fused_lm_head=True)
    assert nothing.loss == 0
    nothing.loss.backward()  # connected, with zero gradients

    dpo = with_own_head(DPOTrainer)(
        HarmonicGPT2ForCausalLM.from_pretrained("model"), args=DPOConfig("out", **plain), train_dataset=pairs,
        processing_class=tokenizer,
    )
    statistics(dpo, ids, mask, 1.0)
    # The reference model is the policy at the start, with its own head, too
    labels = ids.masked_fill(~mask, -100)
    reference = dpo.ref_model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    torch.testing.assert_close(reference, dpo.model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs)

    grpo = with_own_head(GRPOTrainer)(
        HarmonicGPT2ForCausalLM.from_pretrained("model"),
        args=GRPOConfig("out", num_generations=2, temperature=0.7, **plain),
        train_dataset=pairs.select_columns("prompt"), processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )
    statistics(grpo, ids, mask, 0.7)

    # Without it: a message, also from a standard head that scales its hidden states
    try:
        sft(SFTTrainer, HarmonicGPT2ForCausalLM.from_pretrained("model")).evaluate()
    except AttributeError as error:
        assert "with_own_head" in str(error), error
    else:
        raise AssertionError("TRL multiplied by lm_head.weight")

# The standard head as it is: TRL's own product, and the same numbers
HarmonicGPT2ForCausalLM(HarmonicGPT2Config(**sizes, head="standard")).save_pretrained("model")
losses = [
    sft(make, HarmonicGPT2ForCausalLM.from_pretrained("model")).evaluate()["eval_loss"]
    for make in (SFTTrainer, with_own_head(SFTTrainer))
]
assert abs(losses[0] - losses[1]) < 1e-5, losses

for trainer in (KTOTrainer, RLOOTrainer):
    with_own_head(trainer)  # made without complaint

# With PEFT: the copy of the head that is trained is the head, or the trainer refuses it
from peft import LoraConfig
from transformers import Trainer
from harmonic_gpt.errors import InputError

for tying in (False, True):
    model = HarmonicGPT2ForCausalLM.from_pretrained("exported").eval()
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
    lora = LoraConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"], ensure_weight_tying=tying)
    try:
        trainer = sft(lambda *a, **k: with_own_head(SFTTrainer)(*a, peft_config=lora, **k), model)
    except InputError as error:
        assert tying and "ensure_weight_tying=False" in str(error), error
    else:
        assert not tying
        with torch.no_grad():
            loss = trainer.model.eval()(input_ids=ids, labels=ids, fused_lm_head=True).loss
        torch.testing.assert_close(loss, expected)

try:
    with_own_head(Trainer)
except InputError as error:
    assert "Trainer" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_trl_takes_log_probabilities_from_the_head(pythons, exported, tmp_path):
    """All four heads, scaled: losses, gradients and per-token statistics of SFT, DPO and GRPO are the model's own."""
    (tmp_path / "exported").symlink_to(exported)
    environments.run(pythons("training"), TRL, tmp_path, timeout=400)


PEFT = """
import warnings
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True)
from peft import AdaLoraConfig, IA3Config, LoraConfig, VeraConfig, get_peft_model  # after the model was made

for config in (LoraConfig(), AdaLoraConfig(total_step=10), IA3Config(), VeraConfig()):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True), config)
    assert adapted.get_nb_trainable_parameters()[0] > 0
    names = {name.split(".")[-1] for name in adapted.targeted_module_names}
    assert "c_attn" in names, (config, names)
"""


@pytest.mark.slow
def test_peft_knows_the_modules_to_adapt(pythons, exported, tmp_path):
    (tmp_path / "exported").symlink_to(exported)
    environments.run(pythons("training"), PEFT, tmp_path, timeout=200)


def test_without_trl_the_extra_is_named():
    from harmonic_gpt.errors import InputError
    from harmonic_gpt.interop.trl import with_own_head

    with pytest.raises(InputError, match=r"trl is needed here .* pip install 'harmonic-gpt\[trl\]'"):
        with_own_head(object)
