"""From labelled examples to a model's log-probabilities."""
