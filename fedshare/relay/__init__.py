"""A log of signed messages, kept by one relay, that puts the rounds of peers in order. It knows nothing of models."""
