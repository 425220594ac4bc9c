"""Text from a model."""

import torch

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.text import tokenizer_of
from harmonic_gpt.runs.load import LoadedModel


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
        temperature: 0 is greedy. top_k: tokens to choose from at each place.
        seed: of torch's global generator, which is set.
    Raises InputError without a tokenizer, or if prompt and new tokens exceed the model's positions.
    """
    tokenizer, model = tokenizer_of(loaded), loaded.model
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else torch.tensor([[tokenizer.eos_token_id]])
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and ids.shape[1] + max_new_tokens > limit:
        raise InputError(
            f"{ids.shape[1]} prompt tokens and {max_new_tokens} new ones exceed the model's {limit} positions"
        )
    torch.manual_seed(seed)
    choice: dict = {"do_sample": temperature > 0}
    if temperature > 0:
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
