"""Log-probabilities of labelled examples."""
