"""What a run leaves on disk: checkpoints, metrics, and how they are loaded and pushed.

Not here: anything that trains. Everything that reads a run imports this, and nothing of `training`.
"""
