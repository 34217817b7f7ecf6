"""Models on disk: a model's folder, its weights, what they take of memory."""
