"""Two tiny models with the tokenizer of the tiny corpus, on disk, and the explorer of them."""

import pytest
import torch

from harmonic_gpt import HarmonicGPT2Config, HarmonicGPT2ForCausalLM
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.explorer.build import explore
from tests.cli.conftest import cli  # noqa: F401  a fixture of the tests here, too

SIZES = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.fixture(scope="session")
def save_model(token_folder, tmp_path_factory):
    """A function that writes a tiny model and returns its folder; keyword arguments are fields of its config."""

    def save(name: str, tokenizer: bool = True, **fields):
        torch.manual_seed(len(name))
        folder = tmp_path_factory.mktemp("models") / name
        model = HarmonicGPT2ForCausalLM(
            HarmonicGPT2Config(**SIZES | {"bos_token_id": 299, "eos_token_id": 299} | fields)
        )
        with torch.no_grad():  # away from its start, where all tokens are as likely
            for parameter in model.parameters():
                parameter.mul_(1.5)
        model.save_pretrained(folder)
        if tokenizer:
            load_tokenizer(token_folder / "tokenizer").save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def pair(save_model):
    return (
        save_model("blue-harmonic", exponent=8.0),
        save_model("orange-standard", similarity="dot", normalization="softmax"),
    )


@pytest.fixture(scope="session")
def built(pair, token_folder, tmp_path_factory):
    """(folder, what it was made from), without UMAP's map."""
    folder = tmp_path_factory.mktemp("explorer") / "out"
    text = folder.with_name("note.txt")
    text.write_text("The cat sees the house. " * 40)
    options = {"data": str(token_folder), "texts": 3, "length": 40, "files": [str(text)], "umap": False}
    return folder, explore([str(path) for path in pair], folder, device="cpu", **options)
