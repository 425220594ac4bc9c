"""The text that a model is evaluated on, and the tokenizer that reads it."""

from transformers import PreTrainedTokenizerBase

from harmonic_gpt.data.tokens import TokenFolder, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.runs.load import LoadedModel


def data_of(loaded: LoadedModel, data: str | None) -> TokenFolder:
    """The token folder to evaluate on: `data`, or the one that the run trained with.

    Raises InputError if neither is there, or if it was made with another tokenizer than the model's.
    """
    if data is None:
        if loaded.state is None:
            raise InputError(f"{loaded.path} does not say what it was trained on; give --data FOLDER")
        data = loaded.state["config"]["data"]["dir"]
    vocab_size = loaded.model.config.vocab_size
    folder = open_token_folder(data, vocab_size)
    if loaded.tokenizer is not None:
        folder.check_tokenizer(loaded.tokenizer)
    elif folder.vocab_size != vocab_size:
        raise InputError(f"{folder.path} has a vocabulary of {folder.vocab_size}, {loaded.path} one of {vocab_size}")
    return folder


def tokenizer_of(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises InputError if it came without one."""
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer: text cannot be turned into its tokens; copy one there")
    return loaded.tokenizer
