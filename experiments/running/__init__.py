"""One run, from its resolved config to its folder."""
