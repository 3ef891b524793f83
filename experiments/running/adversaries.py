"""The rounds of a config with its adversaries; each row also reports on these."""

from collections.abc import Iterator
from dataclasses import replace

from omegaconf import DictConfig

from fedshare.attacks import Attack
from fedshare.attacks.colluding import Colluding
from fedshare.attacks.liar import Liars
from fedshare.attacks.update import CHANGE, MODEL
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.network import Heard, Network
from fedshare.report.robustness import observed
from fedshare.rounds import Round, run_server
from fedshare.rounds.chain import START
from fedshare.simulation import Population
from fedshare.state import State


def played(
    config: DictConfig,
    network: Network,
    population: Population,
    state: State,
    start: int = 0,
    digest: str = START,
    heard: Heard | None = None,
    alone: bool = False,
) -> Iterator[Round]:
    """Yield the rounds after `start`, like `run_server`. Raises UserError if the attack does not suit the run.

    `alone`: the network is that of one peer, and whom it lacks is not absent.
    """
    network = build.links(config).around(network, len(population.shares), config.seed, start)
    liars = population.liars.ids
    if isinstance(population.liars, Liars) and liars:
        attack = population.liars.attack
        _check_collusion(population, attack, state, config.rounds)
        network = Colluding(network, population.strategy, attack, liars, population.scratch.initial, config.seed)
    schedule = build.schedule(config, population)
    schedule = replace(schedule, clients=None) if alone else schedule
    account = build.account(config, population)
    strategy, task = population.strategy, population.task
    for done in run_server(strategy, network, state, schedule, start, digest, account, task, heard):
        yield replace(done, row=done.row | observed(done.row, liars))


def _check_collusion(population: Population, attack: Attack, state: State, rounds: int) -> None:
    """Raise UserError if adversaries derive their answers from others' models or updates, and no client uploads any."""
    uploads = population.strategy.expects(state, population.liars.ids[0])
    told = not uploads or {MODEL, CHANGE} & uploads.keys()
    if not told and any(type(attack.at(r)).collude is not Attack.collude for r in range(1, rounds + 1)):
        raise UserError(f"attack: answers what others upload of a model, and the strategy uploads {', '.join(uploads)}")
