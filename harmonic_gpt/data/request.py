"""What a preparation is asked for: the defaults, and one form in which two requests are compared."""

from typing import Any

DEFAULT_VOCAB_SIZE, MIN_VOCAB_SIZE = 4096, 257  # of a byte-level BPE that is trained
VALIDATION_SHARE = 0.05
SHARD_TOKENS = 100_000_000


def normalized(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its defaults filled in, and a list of one source as that source.

    Manifests and records of earlier versions hold requests without the default vocabulary: they are compared in this
    form, too.
    """
    request = dict(request)
    source = request.get("source")
    if isinstance(source, list) and len(source) == 1:
        request["source"] = source[0]
    if "vocab_size" in request and request["vocab_size"] is None and request.get("tokenizer") is None:
        request["vocab_size"] = DEFAULT_VOCAB_SIZE
    return request
