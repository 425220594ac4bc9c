"""To and from other people's programs: model cards and export, nanoGPT's checkpoints, lm-evaluation-harness,
TRL, quantizers.

Not here: our own checkpoints and uploads (`runs`).
"""
