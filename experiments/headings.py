"""The title of a plot of one or several runs: method, data and seed."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import printable

LONGEST = 100  # characters; with many runs, the legend has their names


def heading(configs: Sequence[DictConfig], names: Sequence[str]) -> str:
    """Return the title; `names` are the runs' titles, and the common rest of their configs' names is added once."""
    given = [str(config.get("name") or name) for config, name in zip(configs, names, strict=True)]
    rests = {whole.removeprefix(name).strip("-") for whole, name in zip(given, names, strict=True)}
    data = _each([_last(config, "data.load._target_") or "own data" for config in configs])
    methods = _each([_last(config, "strategy._target_") or "?" for config in configs])
    seeds = _each([str(config.get("seed", "?")) for config in configs])
    said = ", ".join(names)
    # A name chosen by the user contains neither.
    about = next(iter(rests)) if len(rests) == 1 else ""
    if not all(_last(config, "data.load._target_") in whole for config, whole in zip(configs, given, strict=True)):
        about = f"{', '.join(methods)} on {', '.join(data)}"
    end = "".join(f" · {part}" for part in (about, f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}") if part)
    return printable((said if len(said + end) <= LONGEST else f"{len(names)} runs") + end)


def _each(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _last(config: DictConfig, key: str) -> str:
    return str(OmegaConf.select(config, key) or "").rpartition(".")[2]
