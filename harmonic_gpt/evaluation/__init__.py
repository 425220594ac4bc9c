"""What a trained model is worth: perplexity, the geometry of its embedding, several models side by side."""
