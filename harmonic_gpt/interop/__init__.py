"""Out to the Hub and the evaluation harness, in from other people's checkpoints."""
