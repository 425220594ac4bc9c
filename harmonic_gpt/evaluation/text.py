"""The text that a model is evaluated on, and the tokenizer that reads it."""

from transformers import PreTrainedTokenizerBase

from harmonic_gpt.data.tokens import TokenFolder, open_token_folder
from harmonic_gpt.errors import InputError
from harmonic_gpt.runs.load import LoadedModel


def data_of(loaded: LoadedModel, data: str | None) -> TokenFolder:
    """The token folder to evaluate on: `data`, or the one that the run trained with.

    Raises InputError if neither is there, if the run's folder no longer holds what it was trained with, or if the data
    were made with another tokenizer than the model's.
    """
    vocab_size = loaded.model.config.vocab_size
    folder = _data_of_run(loaded) if data is None else open_token_folder(data, vocab_size)
    if loaded.tokenizer is not None:
        folder.check_tokenizer(loaded.tokenizer)
    elif folder.vocab_size != vocab_size:
        raise InputError(f"{folder.path} has a vocabulary of {folder.vocab_size}, {loaded.path} one of {vocab_size}")
    return folder


def _data_of_run(loaded: LoadedModel) -> TokenFolder:
    if loaded.state is None:
        raise InputError(f"{loaded.path} does not say what it was trained on; give --data FOLDER")
    try:
        folder = open_token_folder(loaded.state["config"]["data"]["dir"], loaded.model.config.vocab_size)
    except InputError as error:
        raise InputError(
            f"{loaded.path} was trained on data that cannot be read: {error}; or give --data FOLDER"
        ) from error
    if loaded.state.get("data") != folder.fingerprint():  # as in training, which does not resume then
        raise InputError(
            f"{folder.path} is not the data that {loaded.path} was trained on: its files or its tokenizer differ, and "
            f"its validation text may hold what was trained on; to evaluate on it all the same: --data {folder.path}"
        )
    return folder


def tokenizer_of(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises InputError if it came without one."""
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer: text cannot be turned into its tokens; copy one there")
    return loaded.tokenizer
