"""Command line and hydra configs: the only package that uses hydra and wandb."""
