"""What is labelled: examples, their labels, and how these constrain each other."""
