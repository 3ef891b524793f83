"""The config stored in a run's folder, as this version reads it."""

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fedshare.errors import UserError, first_line
from fedshare.experiments.config import older, trust
from fedshare.experiments.config.schema import MEANT, Pretraining, Root, check_complete, check_ranges
from fedshare.experiments.config.trust import Trust
from fedshare.runs import RunFolder


def stored(
    folder: RunFolder,
    last: int | None = None,
    root: type[Root] | type[Pretraining] = Root,
    trusted: Trust | None = None,
) -> DictConfig:
    """Return the config that a run was started with; with `last`, for another last round.

    If another user wrote it, it may name only what is always allowed and what is `trusted`; None: anything.
    """
    try:
        text = folder.config.read_text("utf-8")
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no keys")
        older.renew(config)
        if trusted is not None and not folder.is_ours(text):
            trust.check(config, trusted, f"{folder.path}, whose config this user did not write")
        for key, meant in MEANT.items() if root is Root else ():
            config.setdefault(key, meant)
        if last is not None:
            config.rounds = last
        check_complete(config, root)
        check_ranges(config, root)
        made = OmegaConf.masked_copy(config, [str(key) for key in config if key != "tracking"])
        OmegaConf.to_container(made, resolve=True)
    except UserError:
        raise
    except InterpolationResolutionError as error:  # a missing environment variable
        raise UserError(f"{folder.config}: {error.full_key}: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{folder.config} is damaged: {first_line(error)}") from error
    return config
