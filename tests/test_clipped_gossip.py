"""Clipped gossip: averages like gossip without adversaries, and resists neighbours that are far away."""

import pytest
import torch

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.peers.graphs import Full, Ring
from fedshare.strategies.clipped_gossip import ClippedGossip
from fedshare.strategies.gossip import Gossip


def step(strategy: Gossip, values: list[float], peers: Ring | Full = Ring()) -> list[float]:  # noqa: B008  # frozen
    around = peers.around(strategy, len(values), 0)
    models = [{"w": torch.tensor([value], dtype=torch.float32)} for value in values]
    uploads = {peer: Payload({"params": model}, {"examples": 1.0}) for peer, model in enumerate(models)}
    state = {"peers": {peer: {"params": model} for peer, model in enumerate(models)}}
    return [float(own["params"]["w"]) for own in around.aggregate(state, 1, uploads)["peers"].values()]


@pytest.mark.parametrize("peers", [Ring(), Full()])
def test_without_suspects_it_is_gossip(peers: Ring | Full) -> None:
    values = [0.0, 1.0, 2.5, -1.0, 7.0]
    assert step(ClippedGossip(f=0), values, peers) == pytest.approx(step(Gossip(), values, peers), abs=1e-6)


def test_a_far_neighbour_moves_a_peer_no_further_than_the_next() -> None:
    one, other = (step(ClippedGossip(f=1), [0.0, 1.0, 2.0, 3.0, far]) for far in (100.0, 1e6))
    assert one[:4] == pytest.approx(other[:4]), "how far away it is does not matter"
    # Peer 0 has the neighbours 1 and 4: each moves it by its weight times the distance of the nearer one.
    assert one[0] == pytest.approx(0 + (1 + 1) / 3)


def test_equal_models_stay_equal() -> None:
    assert step(ClippedGossip(f=1), [2.0] * 4) == [2.0] * 4


def test_whoever_distrusts_all_neighbours_keeps_its_model() -> None:
    assert step(ClippedGossip(f=2), [0.0, 1.0, 2.0]) == [0.0, 1.0, 2.0]


def test_its_promise_needs_an_honest_neighbour() -> None:
    assert ClippedGossip(f=1).weakness(range(3)) is None
    assert ClippedGossip(f=1).weakness(range(2)) == (
        "clipped gossip of 2 uploads withstands f=1 neighbours only with 3 or more"
    )
    with pytest.raises(UserError, match="f=-1: must be at least 0"):
        ClippedGossip(f=-1)
