"""Translation of older versions' configs to the current names, which only this module knows."""

from omegaconf import DictConfig, ListConfig

MOVED = {  # modules moved since 0.2.0
    "fedshare.optimizers": "fedshare.training.optimizers",
    "fedshare.privacy": "fedshare.training.private.privacy",
    "fedshare.rates": "fedshare.training.rates",
}
GONE = {"fedshare.strategies.rffl_plus.RFFLPlus": ("gamma", "beta")}  # fields without effect


def renew(config: DictConfig | ListConfig) -> None:
    """Change an older version's config in place."""
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        inner = config._get_node(key)
        if isinstance(inner, DictConfig | ListConfig) and not (inner._is_none() or inner._is_missing()):
            renew(inner)
    if isinstance(config, DictConfig) and isinstance(target := config.get("_target_"), str):
        module, _, name = target.rpartition(".")
        config["_target_"] = f"{MOVED.get(module, module)}.{name}" if module else target
        for field in GONE.get(target, ()):
            config.pop(field, None)
