"""A Flower app whose clients send back what they receive."""
