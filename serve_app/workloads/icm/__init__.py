"""Internal coherence maximisation: labels found by a model's own coherence (Wen et al. 2025, arXiv 2506.10139)."""
