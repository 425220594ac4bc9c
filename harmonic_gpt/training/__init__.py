"""The training loop and what it needs: setup, optimizer, saving, tracking.

Not here: measuring a finished model, or how a run lies on disk (`runs`).
"""
