"""Entry points and hydra configs: the only place that knows hydra and wandb."""
