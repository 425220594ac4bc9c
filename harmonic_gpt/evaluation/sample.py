"""Text from a model."""

import torch

from harmonic_gpt.errors import InputError, option
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.runs.load import LoadedModel

GREEDY_BELOW = 1e-6  # logits divided by much less leave float32


def sample(
    loaded: LoadedModel,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    count: int = 1,
    seed: int = 0,
) -> list[str]:
    """`count` continuations of a prompt, each with the prompt in front.

    Args:
        prompt: empty: the start of a document.
        temperature: at most 1e-6 is greedy. top_k: tokens to choose from at each place.
        seed: of torch's global generator, which is set.
    Raises InputError without a tokenizer, or if prompt and new tokens exceed the model's positions.
    """
    tokenizer, model = tokenizer_of(loaded), loaded.model
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else torch.tensor([[tokenizer.eos_token_id]])
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and ids.shape[1] + max_new_tokens > limit:
        raise InputError(
            f"{option('prompt')} has {ids.shape[1]} tokens; with {option('max_new_tokens')} {max_new_tokens} "
            f"they exceed the model's {limit} positions"
        )
    torch.manual_seed(seed)
    choice: dict = {"do_sample": temperature > GREEDY_BELOW}
    if temperature > GREEDY_BELOW:
        choice |= {"temperature": temperature, "top_k": top_k}
    ids = ids.to(model.device).expand(count, -1)
    outputs = model.generate(  # type: ignore[operator]  # transformers annotates it away
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
        **choice,
    )
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in outputs]
