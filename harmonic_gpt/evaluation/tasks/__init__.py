"""What models are asked: word pairs and probe tasks, with their built-in data.

Not here: how answers are scored (`measures`).
"""
