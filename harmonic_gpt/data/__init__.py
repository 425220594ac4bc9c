"""Documents to token folders, and token folders to batches.

Not here: models. Reading imports nothing of the writer.
"""
