"""Rows as run_queue.py writes them, with what a test needs."""


def row(arm="harmonic", seed=10, loss=5.0, question="enough text", **reading) -> dict:
    settings = {"model.center_std": 0.1, "model.hidden_scale": 0.2, "model.exponent": 8.0}
    start = {
        "key": f"{arm} {seed} {question} {reading}",
        "question": question,
        "size": "2x64",
        "arm": arm,
        "seed": seed,
    }
    head = "standard" if arm == "standard" else "harmonic"
    start |= {"arm": arm, "head": head, "set": {}, "trial": {}, "settings": settings, "val_loss": loss}
    return start | ({"reading": reading} if reading else {})
