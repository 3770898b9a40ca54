"""Internal coherence maximisation: labels from a model's own coherence (Wen et al. 2025, arXiv 2506.10139)."""
