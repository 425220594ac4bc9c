"""Arms of models side by side: measure all, compare, draw, report.

Not here: a measure's own arithmetic (`measures`).
"""
