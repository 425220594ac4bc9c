"""Tasks for lm-evaluation-harness: `lm_eval run --include_path` this folder."""
