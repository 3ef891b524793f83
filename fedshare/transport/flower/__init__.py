"""Our strategies as a Flower app, and our ways to run any Flower app. The only importer of flwr."""
