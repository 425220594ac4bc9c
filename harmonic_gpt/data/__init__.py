"""Text to token files (sources, tokenizer, prepare) and token files to batches (tokens)."""
