"""Adversaries: each formula by hand, and what every attack promises, whatever the strategy."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import world
from fedshare import seeds
from fedshare.attacks import Attack, Sight
from fedshare.attacks.colluders import ALIE, IPM, Away, Mimic, MinMax, MinSum, ReputationAware, Sybils, largest_z
from fedshare.attacks.colluding import Colluding
from fedshare.attacks.data import Backdoor, LabelFlip
from fedshare.attacks.from_byzfl import ByzFL
from fedshare.attacks.liar import Liars
from fedshare.attacks.lies import Gaussian, NonFinite, Rescale, SignFlip, SignRandomise, ValueInvert
from fedshare.attacks.riders import Constant, DeltaNoise, DeltaWeights, Partial, Random, Stale
from fedshare.attacks.timing import OnOff
from fedshare.attacks.update import read
from fedshare.attacks.vectors import deviation, rms
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.errors import RunHalted, UserError
from fedshare.experiments.cli import main
from fedshare.experiments.config.application import CONF
from fedshare.experiments.config.compose import resolved
from fedshare.experiments.config.instantiate import check, make
from fedshare.network import Network, Purpose
from fedshare.payload import Payload
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import RunFolder, verify
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import State, digests, pack, unpack
from fedshare.strategies.rffl import RFFL
from fedshare.tensors import Tensors, add, dot, mean, norm, scale, subtract
from fedshare.training.scratch import Scratch
from optional import extra

OPTIONS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml"))
RIDERS = ["rider_constant", "rider_random", "rider_delta", "rider_delta_noise", "rider_stale"]
LIARS = [1, 3]
IMAGE = Examples(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), (0.3,), (0.4,))


def installed(option: str) -> str:
    if option == "byzfl":
        extra("byzfl")
    return option


def attack_config(option: str, classes: int) -> DictConfig:
    config = OmegaConf.load(CONF / "attack" / f"{option}.yaml")
    assert isinstance(config, DictConfig)
    whole = OmegaConf.create({"data": {"classes": classes}, "attack": config})
    OmegaConf.resolve(whole)
    return whole.attack  # type: ignore[no-any-return]


def attack(option: str, **changes: Any) -> Attack:
    """The attack of a file of the group, for the small world's classes."""
    config = attack_config(installed(option), world.CLASSES)
    for key, value in {"source": 1, "target": 2, "share": 0.3, "options": {"f": 1}}.items():
        if config.get(key) is not None:
            config[key] = value
    return make(OmegaConf.merge(config, {"adversaries": LIARS}, changes), "attack", Attack)  # type: ignore[no-any-return]


def examples(labels: Sequence[int], x: Tensor | None = None) -> Examples:
    x = torch.arange(len(labels) * 2.0).view(-1, 2) if x is None else x
    return Examples(x, torch.tensor(labels))


def sight(memory: State | None = None, start: Sequence[float] = (0, 0), round: int = 1, client: int = 1) -> Sight:
    return Sight(round, 0, client, {} if memory is None else memory, {"w": torch.tensor(start, dtype=torch.float32)})


def vector(*values: float) -> Tensors:
    return {"params/w": torch.tensor(values)}


def values(update: Tensors) -> list[float]:
    return update["params/w"].tolist()  # type: ignore[no-any-return]


def scattered(count: int, size: int = 30, seed: int = 0) -> dict[int, Tensors]:
    """Updates of two tensors that lean one way."""
    random = seeds.generator(seed, "scattered")
    common = torch.randn(size, generator=random)
    rows = [common + torch.randn(size, generator=random) for _ in range(count)]
    return {client: {"params/a": row[:6].view(2, 3), "params/b": row[6:]} for client, row in enumerate(rows)}


def collude(attack: Attack, honest: dict[int, Tensors], liars: int = 2) -> list[Tensors]:
    own = {50 + client: update for client, update in scattered(liars, seed=7).items()}
    own = own if "params/a" in honest[min(honest)] else {client: vector(1.0, 2.0) for client in own}
    agreed = attack.collude(honest, own, seeds.generator("agree"))
    assert agreed.keys() == own.keys()
    return list(agreed.values())


# A small world


strategy_of = cache(world.strategy)


def simulation(strategy: str, attack: Attack, training: Training | None = None) -> Simulation:
    training = training or Training(optimizer=world.sgd, epochs=1, batch_size=None)
    with seeds.scope(0, "model"):
        scratch = Scratch(world.Net())
    liars = Liars(attack, world.CLIENTS, 0)
    population = Population(strategy_of(strategy), scratch, training, world.shares(), 0, liars)
    return Simulation(lambda: population, 0, population=population)


def colluding(network: Simulation, wrapped: Network | None = None) -> Colluding:
    population = network.population
    return Colluding(
        wrapped or network,
        population.strategy,
        population.liars.attack,
        population.liars.ids,
        population.scratch.initial,
        population.seed,
    )


def run(
    network: Simulation, rounds: int = 2, state: State | None = None, start: int = 0, evaluate: int = 0
) -> list[Round]:
    strategy = network.population.strategy
    state = world.begin(network.population) if state is None else state
    schedule = Schedule(rounds=rounds, seed=0, max_examples=100, evaluate_every=evaluate)
    return list(run_server(strategy, colluding(network), state, schedule, start))


def uploads(network: Simulation, round: int = 1) -> dict[int, Payload]:
    strategy = network.population.strategy
    state = world.begin(network.population)
    downloads = {client: strategy.download(state, client, Purpose.TRAIN) for client in network.client_ids()}
    asked = {client: download for client, download in downloads.items() if download is not None}
    answers = colluding(network).exchange(Purpose.TRAIN, round, asked).answers
    return {client: strategy.form.decode(upload, strategy.expects(state, client)) for client, upload in answers.items()}


def bits(payload: Payload) -> dict[str, str]:
    return digests({"tensors": payload.tensors, "metrics": payload.metrics})


# Configuration


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_keys_are_the_fields(option: str) -> None:
    node = attack_config(option, 10)
    kind = get_object(node["_target_"])
    assert node.keys() - {"_target_"} == {field.name for field in dataclasses.fields(kind)}
    check(node, "attack")
    if option != "byzfl":
        make(node, "attack", Attack).suits(IMAGE, 10)
    text = (CONF / "attack" / f"{option}.yaml").read_text().splitlines()
    assert text[0].startswith("# ")
    assert text[2].endswith("# the adversaries: their ids, or their number, drawn by the seed")
    top = [line for line in text[2:] if not line.startswith(" ")]
    assert all(" # " in line for line in top), top


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Attack(adversaries=-1), "adversaries=-1: must be at least 0"),
        (lambda: LabelFlip(classes=3, source=1), "source=1, target=None: must be two classes, or null both"),
        (lambda: LabelFlip(classes=3, source=1, target=1), "must be two classes"),
        (lambda: LabelFlip(classes=3, source=1, target=3), "target=3: must be at least 0 and at most 2"),
        (lambda: Backdoor(fraction=1.5), "fraction=1.5: must be at least 0 and at most 1"),
        (lambda: Backdoor(size=0), "size=0: must be at least 1"),
        (lambda: Backdoor(boost=math.inf), "boost=inf: must be a finite number"),
        (lambda: SignFlip(factor=-1), "factor=-1: must be at least 0"),
        (lambda: Rescale(most=math.nan), "most=nan: must be at least 0"),
        (lambda: ValueInvert(share=2), "share=2"),
        (lambda: Gaussian(scale=-1), "scale=-1"),
        (lambda: Constant(value=math.nan), "value=nan: must be a finite number"),
        (lambda: Random(radius=-1), "radius=-1"),
        (lambda: DeltaNoise(decay=-1), "decay=-1"),
        (lambda: Stale(learns=-1), "learns=-1"),
        (lambda: Partial(share=-1), "share=-1"),
        (lambda: ALIE(z=math.inf), "z=inf"),
        (lambda: IPM(factor=-1), "factor=-1"),
        (lambda: MinMax(direction="up"), "direction=up: must be std, unit, sign"),  # type: ignore[arg-type]
        (lambda: Sybils(of=3), "of: is a int, not an attack"),  # type: ignore[arg-type]
        (lambda: Sybils(of=SignFlip(), jitter=-1), "jitter=-1"),
        (lambda: ReputationAware(classes=3, cosine=2), "cosine=2: must be at least -1 and at most 1"),
        (lambda: OnOff(attack=SignFlip(), active=0), "active=0: must be at least 1"),
        (lambda: OnOff(attack=None), "attack: is a NoneType, not an attack"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_mean_nothing_are_refused(made: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        made()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["attack=sign_flip", "attack.factor=-2"], "attack: factor=-2: must be at least 0"),
        (["attack=min_max", "attack.direction=up"], "attack.direction=up: must be one of std, unit, sign"),
        (["attack=on_off", "attack.attack.factor=-2"], "factor=-2: must be at least 0"),
        (["attack=sybils", "attack.of._target_=fedshare.strategies.fedavg.FedAvg"], "attack.of.classes: no such key"),
    ],
)
def test_a_bad_value_in_a_config_is_one_line(changes: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        make(resolved(changes).attack, "attack", Attack)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_who_lies_by_their_ids_or_by_how_many() -> None:
    assert Attack(adversaries=[4, 1, 4]).who(5, 0) == [1, 4]
    assert Attack(adversaries=0).who(5, 0) == []
    drawn = {seed: Attack(adversaries=2).who(20, seed) for seed in range(10)}
    assert all(len(set(ids)) == 2 and ids == sorted(ids) and ids[0] >= 0 and ids[1] < 20 for ids in drawn.values())
    assert len(set(map(tuple, drawn.values()))) > 5
    assert drawn[3] == Attack(adversaries=2).who(20, 3)
    assert set(Attack(adversaries=2).who(20, 3)) < set(Attack(adversaries=5).who(20, 3))
    assert Attack(adversaries=5).who(5, 0) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="there are 5 clients, so there is no client 7"):
        Attack(adversaries=[0, 7]).who(5, 0)
    with pytest.raises(UserError, match="adversaries=6: there are 5 clients"):
        Attack(adversaries=6).who(5, 0)


# Poisoned examples


def test_label_flips_by_hand() -> None:
    given = examples([0, 1, 2, 1])
    everything, pair = LabelFlip(classes=3), LabelFlip(classes=3, source=1, target=2)
    assert everything.poison(given, seeds.generator(0)).y.tolist() == [2, 1, 0, 1]
    assert pair.poison(given, seeds.generator(0)).y.tolist() == [0, 2, 2, 2]
    assert given.y.tolist() == [0, 1, 2, 1]


class Taker(nn.Module):
    """A model that takes each input for the class whose feature is largest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert len(x) <= 2, "no more than evaluation_batch_size"
        return x.flatten(1).to(torch.float32) * self.weight


def success(attack: Attack, test: Examples) -> dict[str, float]:
    part = Part(examples([0]), test)
    training = Training(optimizer=world.sgd, evaluation_batch_size=2)
    population = Population(world.strategy("fedavg"), Scratch(Taker()), training, [part], 0, attack)
    client = population.client(0, {})
    client.model.train()
    return attack.success(client)


def test_success_of_a_label_flip_by_hand() -> None:
    seen = [2, 2, 0, 1, 0]  # what the model takes them for
    test = examples([0, 1, 1, 1, 2], torch.eye(3)[seen])
    # The pair: of three examples of class 1, the first is taken for 2. All: 0 for 2 and 2 for 0; 1 remains 1.
    assert success(LabelFlip(classes=3, source=1, target=2), test) == {"attack_success": 1 / 3}
    assert success(LabelFlip(classes=3), test) == {"attack_success": 1.0}
    assert success(LabelFlip(classes=3, source=0, target=1), test) == {"attack_success": 0.0}
    assert success(LabelFlip(classes=3, source=1, target=2), examples([0, 2], torch.eye(3)[:2])) == {}
    assert success(LabelFlip(classes=3), examples([], torch.zeros(0, 3))) == {}


def test_a_backdoor_by_hand() -> None:
    images = Examples(torch.full((4, 1, 3, 3), 7, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), (0.5,), (0.5,))
    made = Backdoor(target=2, fraction=0.5, size=2, value=255)
    poisoned = made.poison(images, seeds.generator(0))
    touched = [row for row in range(4) if not poisoned.x[row].equal(images.x[row])]
    assert len(touched) == 2
    for row in touched:
        assert poisoned.x[row, 0].tolist() == [[7, 7, 7], [7, 255, 255], [7, 255, 255]]
        assert poisoned.y[row] == 2
    assert [poisoned.y[row] for row in range(4) if row not in touched] == [
        images.y[row] for row in range(4) if row not in touched
    ]
    assert images.x.unique().tolist() == [7]
    assert poisoned.x.dtype == torch.uint8
    assert Backdoor(boost=5).forge(vector(1.0, -2.0), sight())["params/w"].tolist() == [5, -10]
    # The trigger is the first feature: of three examples of other classes, it makes two the target's.
    test = examples([1, 1, 2, 0], torch.tensor([[0.0, 1, 0], [0, 3, 0], [0, 0, 1], [9, 0, 0]]))
    assert success(Backdoor(target=0, size=1, value=2), test) == {"attack_success": 2 / 3}
    assert test.x[0].tolist() == [0, 1, 0]
    assert success(Backdoor(target=0, size=1, value=2), examples([0], torch.zeros(1, 3))) == {}


def test_data_that_cannot_be_poisoned_are_refused() -> None:
    one = examples([0])
    image = IMAGE
    text = Examples(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64))
    LabelFlip(classes=3).suits(one, 3)
    Backdoor().suits(image, 3)
    Backdoor(size=2, value=0.5).suits(one, 3)
    SignFlip().suits(text, 3)
    for wrong, example, said in (
        (LabelFlip(classes=3), text, "one label each"),
        (LabelFlip(classes=3), one, "its classes are 3, those of the data 10"),
        (Backdoor(), text, "one label each"),
        (Backdoor(target=10), image, "its target is 10"),
        (Backdoor(size=9), image, "size 9 does not fit into inputs of shape \\[1, 8, 8\\]"),
        (Backdoor(size=3), one, "size 3 does not fit"),
        (Backdoor(value=256), image, "its value 256 is no uint8"),
        (Backdoor(value=-1), image, "its value -1 is no uint8"),
        (OnOff(attack=Backdoor(value=256)), image, "no uint8"),
        (Sybils(of=Backdoor(value=256)), image, "no uint8"),
    ):
        with pytest.raises(UserError, match=said):
            wrong.suits(example, 10)


# Lies about one's own


def test_lies_by_hand() -> None:
    update = vector(1.0, -2.0, 0.5)
    assert values(SignFlip(factor=3).forge(update, sight())) == [-3, 6, -1.5]
    assert values(NonFinite(infinite=True).forge(update, sight())) == [math.inf] * 3
    one = values(NonFinite(everywhere=False).forge(update, sight()))
    assert math.isnan(one[0])
    assert one[1:] == [-2, 0.5]
    assert values(ValueInvert(share=1).forge(update, sight())) == [1, -0.5, 2]
    assert values(ValueInvert(share=0).forge(update, sight())) == values(update)
    assert values(update) == [1, -2, 0.5]


def test_lies_at_random() -> None:
    update = vector(*[1.0, -2.0] * 500)
    signs = SignRandomise().forge(update, sight())
    assert signs["params/w"].abs().equal(update["params/w"].abs())
    assert 400 < int((signs["params/w"] == update["params/w"]).sum()) < 600
    factors = [values(Rescale(most=100).forge(vector(1.0, -2.0), sight(round=r))) for r in range(50)]
    assert all(b == -2 * a for a, b in factors), "one factor a round"
    assert all(abs(a) <= 100 for a, _ in factors)
    assert len({a for a, _ in factors}) == 50
    assert min(a for a, _ in factors) < -60
    assert max(a for a, _ in factors) > 60
    inverted = ValueInvert().forge(update, sight())["params/w"]
    assert 400 < int((inverted == update["params/w"]).sum()) - 250 < 600, "1 / 1 is 1"
    noise = Gaussian(scale=2).forge(update, sight())
    assert rms(noise) == pytest.approx(2 * math.sqrt(2.5), rel=0.1)
    assert abs(float(noise["params/w"].mean())) < 0.4
    for lie in (SignRandomise(), Rescale(), ValueInvert(), Gaussian(), Random()):
        assert digests(lie.forge(update, sight())) == digests(lie.forge(update, sight()))
        others = [lie.forge(update, sight(round=2)), lie.forge(update, sight(client=2))]
        assert all(digests(other) != digests(lie.forge(update, sight())) for other in others)


# Free-riders


def test_riders_by_hand() -> None:
    update = vector(0.0, 0.0)
    assert values(Constant(value=0.5).forge(update, sight())) == [0.5, 0.5]
    drawn = values(Random(radius=3).forge(vector(*[0.0] * 1000), sight()))
    assert -3 <= min(drawn) < -2.8
    assert 2.8 < max(drawn) <= 3

    memory: State = {}
    assert values(DeltaWeights().forge(update, sight(memory, [1, 2]))) == [0, 0]
    memory = unpack(pack(memory))
    assert values(DeltaWeights().forge(update, sight(memory, [4, 1]))) == [3, -1]
    assert values(DeltaWeights().forge(update, sight(memory, [4, 2]))) == [0, 1]


def test_the_noise_of_a_rider_decays_from_the_first_change_on() -> None:
    many = vector(*[0.0] * 1000)
    memory: State = {}
    ride = DeltaNoise(noise=2, decay=1)
    assert norm(ride.forge(many, sight(memory, [0] * 1000, 1))) == 0
    ride.forge(many, sight(memory, [3] * 1000, 2))
    memory = unpack(pack(memory))
    assert memory["size"] == pytest.approx(3)
    fourth = ride.forge(many, sight(memory, [4] * 1000, 4))["params/w"] - 1
    assert float(fourth.std()) == pytest.approx(2 * 3 / 4, rel=0.1)


def test_a_stale_one_learns_and_then_repeats_itself() -> None:
    ride = Stale(learns=2)
    assert [ride.at(round).trains for round in (1, 2, 3)] == [True, True, False]
    memory: State = {}
    for round, sent in ((1, 1.0), (2, 2.0)):
        assert values(ride.at(round).forge(vector(sent, 0.0), sight(memory))) == [sent, 0]
    memory = unpack(pack(memory))
    for round in (3, 9):
        assert values(ride.at(round).forge(vector(7.0, 7.0), sight(memory))) == [2, 0]
    assert values(ride.at(3).forge(vector(7.0, 7.0), sight())) == [0, 0], "it was not there"


def test_a_partial_one_trains_on_a_few() -> None:
    given = examples([0, 1, 2, 0, 1, 2, 0])
    few = Partial(share=0.3).poison(given, seeds.generator(0))
    assert len(few) == 3
    assert len(Partial(share=0.01).poison(given, seeds.generator(0))) == 1
    assert all(bool((given.x == row).all(1).any()) for row in few.x)


# Colluders


def test_alie_and_ipm_by_hand() -> None:
    honest = {0: vector(1.0, 0.0), 2: vector(3.0, 0.0), 3: vector(5.0, 3.0)}
    # Means 3 and 1; deviations, by n - 1: sqrt(8 / 2) = 2 and sqrt(6 / 2).
    first, second = collude(ALIE(z=1.5), honest)
    assert values(first) == pytest.approx([0, 1 - 1.5 * math.sqrt(3)])
    assert digests(first) == digests(second)
    assert values(collude(IPM(factor=2), honest)[0]) == [-6, -2]
    assert values(collude(ALIE(z=1), {4: vector(1.0, 2.0)})[0]) == [1, 2]


def test_the_largest_z_of_the_paper() -> None:
    # Of 50 with 24 liars, 2 honest ones are needed: the normal quantile of 24 / 26.
    assert largest_z(26, 24) == pytest.approx(1.4261, abs=1e-4)
    assert largest_z(38, 12) == pytest.approx(0.3360, abs=1e-3)
    assert largest_z(8, 2) == 0, "so few liars can do nothing unseen"
    assert largest_z(9, 1) == 0
    assert math.isfinite(largest_z(2, 5)), "liars who are the majority need nobody"
    honest = scattered(6)
    plain = collude(ALIE(), honest, 5)[0]
    assert digests(plain) == digests(collude(ALIE(z=largest_z(6, 5)), honest, 5)[0])


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
@pytest.mark.parametrize("kind", [MinMax, MinSum])
def test_min_max_and_min_sum_go_as_far_as_is_allowed(kind: type[Away], direction: Any) -> None:
    honest = scattered(7)
    updates = list(honest.values())
    middle = mean(updates)
    steps = {
        "std": scale(deviation(updates), -1),
        "unit": scale(middle, -1 / norm(middle)),
        "sign": {name: -t.sign() for name, t in middle.items()},
    }
    step = steps[direction]
    apart = torch.tensor([[norm(subtract(a, b)) ** 2 for b in updates] for a in updates])

    def allowed(gamma: float) -> bool:
        lie = add(middle, step, alpha=gamma)
        squares = torch.tensor([norm(subtract(lie, update)) ** 2 for update in updates])
        if kind is MinMax:
            return bool(squares.max() <= apart.max())
        return bool(squares.sum() <= apart.sum(1).max())

    low, high = 0.0, 1000.0
    for _ in range(60):
        low, high = ((low + high) / 2, high) if allowed((low + high) / 2) else (low, (low + high) / 2)
    first, second = collude(kind(direction=direction), honest)
    assert digests(first) == digests(second)
    assert low > 0.1
    torch.testing.assert_close(first, add(middle, step, alpha=low), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [MinMax, MinSum])
def test_where_honest_updates_do_not_differ_there_is_no_room(kind: type[Away]) -> None:
    for direction in ("std", "unit", "sign"):
        for honest in ({0: vector(1.0, 2.0)}, dict.fromkeys(range(3), vector(1.0, 2.0))):
            assert values(collude(kind(direction=direction), honest)[0]) == pytest.approx([1, 2])  # type: ignore[arg-type]
        assert values(collude(kind(direction=direction), {0: vector(0.0, 0.0)})[0]) == [0, 0]  # type: ignore[arg-type]


def test_mimics_copy_their_victim_or_the_first() -> None:
    honest = {client: vector(float(client), 0.0) for client in (2, 3, 5)}
    assert [values(lie) for lie in collude(Mimic(victim=5), honest)] == [[5, 0], [5, 0]]
    assert [values(lie) for lie in collude(Mimic(), honest)] == [[2, 0], [2, 0]]
    assert [values(lie) for lie in collude(Mimic(victim=4), honest)] == [[2, 0], [2, 0]]


def test_sybils_send_what_the_first_of_them_would() -> None:
    honest = scattered(4)
    own = scattered(3, seed=7)
    same = collude(Sybils(of=LabelFlip(classes=3)), honest, 3)
    assert all(digests(lie) == digests(own[0]) for lie in same)
    jittered = collude(Sybils(of=LabelFlip(classes=3), jitter=0.1), honest, 3)
    assert len({repr(digests(lie)) for lie in jittered}) == 3
    for lie in jittered:
        assert 0.05 < rms(subtract(lie, own[0])) / rms(own[0]) < 0.15
    under = Sybils(of=SignFlip(factor=2))
    assert values(under.forge(vector(1.0, 2.0), sight())) == [-2, -4]
    assert not Sybils(of=Constant()).trains
    assert not Sybils(of=Stale()).at(2).trains
    assert digests(collude(Sybils(of=IPM()), honest)[1]) == digests(collude(IPM(), honest)[0])


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.5, 0.9, 1.0])
def test_a_reputation_aware_update_agrees_as_far_as_it_must(cosine: float) -> None:
    honest, own = scattered(5), scattered(2, seed=7)
    middle = mean(list(honest.values()))
    lies = collude(ReputationAware(classes=3, cosine=cosine), honest)
    for liar, lie in enumerate(lies):
        assert norm(lie) == pytest.approx(norm(middle), rel=1e-5)
        assert dot(lie, middle) / norm(middle) ** 2 == pytest.approx(cosine, abs=1e-5)
        aside = add(lie, middle, alpha=-cosine)
        assert dot(aside, own[liar]) >= -1e-4, "towards its own aim"
    turned = ReputationAware(classes=3, cosine=0.6).collude({0: vector(5.0, 0.0)}, {1: vector(9.0, 2.0)}, None)  # type: ignore[arg-type]
    assert values(turned[1]) == pytest.approx([3, 4])
    along = ReputationAware(classes=3, cosine=0.6).collude({0: vector(5.0, 0.0)}, {1: vector(9.0, 0.0)}, None)  # type: ignore[arg-type]
    assert values(along[1]) == pytest.approx([3, 0])
    nothing = ReputationAware(classes=3).collude({0: vector(0.0, 0.0)}, {1: vector(9.0, 0.0)}, None)  # type: ignore[arg-type]
    assert values(nothing[1]) == [9, 0]


# Timing


def test_on_off_by_hand() -> None:
    inner = SignFlip()
    times = OnOff(attack=inner, start=2, active=1, quiet=2, adversaries=[1])
    assert [times.at(round) is inner for round in range(1, 9)] == [False, False, True, False, False, True, False, False]
    assert all(type(times.at(round)) is Attack for round in (1, 2, 4, 5))
    assert all(OnOff(attack=inner, start=0, quiet=0).at(round) is inner for round in range(1, 20))
    assert OnOff(attack=Stale(learns=4), start=0, active=9).at(5) != Stale(learns=4)
    assert OnOff(attack=SignFlip(adversaries=4), adversaries=[0]).who(5, 0) == [0]
    test = examples([1], torch.tensor([[0.0, 0, 1]]))
    assert success(OnOff(attack=LabelFlip(classes=3, source=1, target=2)), test) == {"attack_success": 1.0}


@pytest.mark.parametrize("strategy", ["fedavg", "rffl"])
def test_one_who_is_off_is_honest_to_the_bit(strategy: str) -> None:
    plain = [done.link for done in run(simulation(strategy, Attack()), 4)]
    times = OnOff(attack=IPM(factor=3), start=2, active=1, quiet=1, adversaries=LIARS)
    found = [done.link for done in run(simulation(strategy, times), 4)]
    assert found[:2] == plain[:2]
    assert found[2] != plain[2]
    flipped = OnOff(attack=LabelFlip(classes=3), start=0, active=1, quiet=1, adversaries=LIARS)
    network = simulation(strategy, flipped)
    off, on = uploads(network, 2), uploads(network, 1)
    honest = simulation(strategy, Attack())
    assert {c: bits(u) for c, u in off.items()} == {c: bits(u) for c, u in uploads(honest, 2).items()}
    assert all(bits(on[liar]) != bits(uploads(honest, 1)[liar]) for liar in LIARS)


# Every attack, in a run


@pytest.mark.parametrize("strategy", ["fedavg", "rffl"])
@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "none"])
def test_an_attack_touches_only_the_adversaries_and_repeats(option: str, strategy: str) -> None:
    made = attack(option)
    harmless = option in ("on_off", "rider_stale")  # in round 1
    plain, attacked = honest_uploads(strategy), uploads(simulation(strategy, made))
    assert attacked.keys() == plain.keys()
    for client in plain:
        same = bits(attacked[client]) == bits(plain[client])
        if client not in LIARS:
            assert same, "an honest client is not touched"
        elif not harmless:
            assert not same
        assert attacked[client].metrics["examples"] == plain[client].metrics["examples"]
        for group, tensors in plain[client].tensors.items():
            for name, tensor in tensors.items():
                assert attacked[client].tensors[group][name].dtype == tensor.dtype

    whole = simulation(strategy, made)
    expected = run(whole)
    dropped = ["1", "3"] if option == "non_finite" else []
    assert [list(done.row["dropped"]) for done in expected] == [dropped] * 2

    stopped = simulation(strategy, made)
    state = run(stopped, 1)[-1].state
    later = simulation(strategy, made)
    later.memories.recall({client: unpack(pack(memory)) for client, memory in stopped.memories.remember().items()}, 1)
    rest = run(later, 2, unpack(pack(state)), 1)[-1]
    assert digests(rest.state) == digests(expected[-1].state), "it repeats, and what they remember survives"
    ours, theirs = later.memories.remember(), whole.memories.remember()
    assert {c: digests(s) for c, s in ours.items()} == {c: digests(s) for c, s in theirs.items()}


@cache
def honest_uploads(strategy: str) -> dict[int, Payload]:
    return uploads(simulation(strategy, Attack()))


@pytest.mark.parametrize("option", OPTIONS)
def test_where_nothing_is_uploaded_an_attack_on_updates_is_harmless(option: str) -> None:
    made, network = attack(option), simulation("local", Attack())
    attacked = simulation("local", made)
    expected, found = run(network, 1, evaluate=1), run(attacked, 1, evaluate=1)
    honest = [client for client in range(world.CLIENTS) if client not in LIARS]
    for client in honest:
        assert digests(attacked.memories.states[client]) == digests(network.memories.states[client])
        ours, theirs = (done[-1].row["per_client"]["loss"][str(client)] for done in (expected, found))
        assert ours == theirs
    assert not any(done.row["dropped"] for done in found)


def test_attacks_work_under_every_strategy() -> None:
    for strategy in world.STRATEGIES:
        for liars in (SignFlip(adversaries=LIARS), IPM(adversaries=LIARS)):
            assert len(run(simulation(strategy, liars), 1)) == 1, strategy


@pytest.mark.parametrize("option", RIDERS)
def test_free_riders_never_step(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            steps.append(1)
            super().step(closure)

    training = Training(optimizer=lambda parameters: Counted(parameters, lr=0.1), epochs=1, batch_size=None)
    network = simulation("fedavg", attack(option, adversaries=[0, 1, 2, 3]), training)
    run(network, 2)
    once = 4 if option == "rider_stale" else 0
    assert len(steps) == 2 + once, "client 4 in each round"


@pytest.mark.parametrize("option", ["label_flip", "backdoor", "sybils", "rider_partial", "reputation_aware"])
def test_the_data_set_in_memory_stays_as_it_was(option: str) -> None:
    network = simulation("fedavg", attack(option))
    shares = network.population.shares
    before = [digests({"x": s.train.x, "y": s.train.y, "tx": s.test.x, "ty": s.test.y}) for s in shares]
    run(network)
    assert before == [digests({"x": s.train.x, "y": s.train.y, "tx": s.test.x, "ty": s.test.y}) for s in shares]


@pytest.mark.parametrize(("infinite", "everywhere"), [(False, True), (True, False), (True, True), (False, False)])
@pytest.mark.parametrize("strategy", ["fedavg", "rffl"])
def test_what_is_no_number_is_dropped(strategy: str, infinite: bool, everywhere: bool) -> None:
    liars = NonFinite(infinite=infinite, everywhere=everywhere, adversaries=LIARS)
    (done,) = run(simulation(strategy, liars), 1)
    assert list(done.row["dropped"]) == ["1", "3"]
    assert all("NaN or infinity" in reason for reason in done.row["dropped"].values())
    assert done.row["clients"] == [0, 2, 4]
    with pytest.raises(RunHalted, match="round 1: 3 of 5 uploads cannot be used"):
        run(simulation(strategy, dataclasses.replace(liars, adversaries=3)), 1)


def test_a_colluder_learns_nothing_from_what_is_no_number() -> None:
    network = simulation("fedavg", IPM(adversaries=LIARS))
    plain = uploads(simulation("fedavg", Attack()))
    bad = world.Altered(network, {0: lambda p: Payload({"params": scale(p.tensors["params"], math.nan)}, p.metrics)})
    strategy, initial = network.population.strategy, network.population.scratch.initial
    state = world.begin(network.population)
    downloads = {client: strategy.download(state, client, Purpose.TRAIN) for client in network.client_ids()}
    asked = {client: download for client, download in downloads.items() if download is not None}
    answers = colluding(network, bad).exchange(Purpose.TRAIN, 1, asked).answers
    middle = mean([read(plain[client], initial) for client in (2, 4)])
    for liar in LIARS:
        torch.testing.assert_close(read(answers[liar], initial), scale(middle, -1.0), rtol=1e-4, atol=1e-6)


# What attacks reach


def flat_world(strategy: Any, attack: Attack, order: Sequence[int], clients: int = 6) -> Population:
    """Client i of the plain order is called ``order[i]``; one step on all examples, so that its name moves nothing."""
    plain = world.shares(clients)
    parts = [part for _, part in sorted(zip(order, plain, strict=True), key=lambda pair: pair[0])]
    with seeds.scope(0, "linear"):
        module = nn.Linear(world.FEATURES, world.CLASSES)
    training = Training(optimizer=partial(world.sgd, lr=0.5), epochs=3, batch_size=None)
    return Population(strategy, Scratch(module), training, parts, 0, Liars(attack, clients, 0))


@pytest.mark.parametrize("order", [[4, 5, 0, 1, 2, 3], [3, 1, 5, 0, 2, 4]], ids=["last", "mixed"])
@pytest.mark.parametrize(
    "made",
    [SignFlip(), LabelFlip(classes=3), DeltaWeights(), IPM(), ReputationAware(classes=3, cosine=0.3)],
    ids=lambda made: type(made).__name__,
)
def test_it_does_not_matter_which_places_adversaries_have(made: Attack, order: list[int]) -> None:
    def outcome(names: list[int]) -> dict[str, list[float]]:
        liars = dataclasses.replace(made, adversaries=names[:2])
        population = flat_world(RFFL(warmup=3, alpha=0.5), liars, names)
        done = run(Simulation(lambda: population, 0), 4, evaluate=4)[-1]
        return {
            "reputation": [done.state["reputation"].get(name, 0) for name in names],
            "removed": [done.state["removed"].get(name, 0) for name in names],
            "accuracy": [done.row["per_client"]["accuracy"][str(name)] for name in names],
        }

    plain, other = outcome([0, 1, 2, 3, 4, 5]), outcome(order)
    for what in plain:
        assert plain[what] == pytest.approx(other[what], rel=1e-3), what


@pytest.mark.parametrize(
    "made",
    [
        Backdoor(target=2, fraction=0.7, size=1, value=12, boost=2),
        LabelFlip(classes=3, source=1, target=2),
        ReputationAware(classes=3, source=1, target=2, cosine=0.0),
    ],
    ids=lambda made: type(made).__name__,
)
def test_an_attack_on_classes_succeeds(made: Attack) -> None:
    def reached(liars: list[int]) -> tuple[float, float]:
        population = flat_world(world.strategy("fedavg"), dataclasses.replace(made, adversaries=liars), range(6))
        network = Simulation(lambda: population, 0)
        done = run(network, 5, evaluate=5)[-1]
        tests = [part.test for part in population.shares]
        whole = Examples(torch.cat([test.x for test in tests]), torch.cat([test.y for test in tests]))
        client = dataclasses.replace(population, shares=[Part(whole, whole)]).client(0, {})
        client.load(done.state["params"])
        return made.success(client)["attack_success"], done.row["accuracy"]

    (clean, _), (attacked, accuracy) = reached([]), reached([3, 4, 5])
    assert attacked > clean
    assert accuracy > 0.4


def test_success_is_measured_at_every_client_also_when_the_adversaries_rest() -> None:
    times = OnOff(attack=LabelFlip(classes=3), start=9, adversaries=LIARS)
    network = simulation("fedavg", times)
    downloads = {client: Payload({"params": network.population.scratch.initial}) for client in network.client_ids()}
    answers = network.exchange(Purpose.EVALUATE, 1, downloads).answers
    for part, answer in zip(network.population.shares, answers.values(), strict=True):
        assert ("attack_success" in answer.metrics) == bool((part.test.y != 1).any())
        assert 0 <= answer.metrics.get("attack_success", 0) <= 1


# ByzFL


def test_byzfl_agrees_with_us() -> None:
    extra("byzfl")
    honest = scattered(7)
    middle = mean(list(honest.values()))
    for ours, name, options in (
        (ALIE(z=-1.5), "ALittleIsEnough", {"tau": 1.5}),  # it adds where the paper takes away
        (ALIE(z=0.3), "ALittleIsEnough", {"tau": -0.3}),
        (IPM(factor=2), "InnerProductManipulation", {"tau": 2.0}),
        (IPM(factor=1), "SignFlipping", {}),
        (Mimic(), "Mimic", {}),
        (Mimic(victim=3), "Mimic", {"epsilon": 3}),
    ):
        mine, theirs = collude(ours, honest), collude(ByzFL(name=name, options=options), honest)
        torch.testing.assert_close(mine[0], theirs[0])
        assert digests(theirs[0]) == digests(theirs[1])
    flipped = collude(ByzFL(name="SignFlipping"), honest)[0]
    torch.testing.assert_close(SignFlip().forge(middle, sight()), flipped)


def test_byzfl_by_name_and_options() -> None:
    extra("byzfl")
    honest = scattered(5)
    for name in ("Gaussian", "Optimal_InnerProductManipulation", "Optimal_ALittleIsEnough", "Inf"):
        before = torch.random.get_rng_state()
        first, again = (collude(ByzFL(name=name), honest)[0] for _ in range(2))
        assert digests(first) == digests(again)
        assert torch.random.get_rng_state().equal(before)
        assert {key: (t.dtype, t.shape) for key, t in first.items()} == {
            key: (t.dtype, t.shape) for key, t in honest[0].items()
        }
    with pytest.raises(UserError, match="name=Average: must be SignFlipping, "):
        ByzFL(name="Average")
    with pytest.raises(UserError, match=r"options=\{'tau': 1\}: tau must be a float"):
        ByzFL(name="ALittleIsEnough", options={"tau": 1})


def test_a_run_tells_what_the_attack_reached_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """By way of the command: what a rider remembers lies in the checkpoint."""
    keys = ["data=digits", "model=logistic", "partition=iid", "partition.clients=5", "strategy=rffl", "workers=0"]
    keys += ["strategy.warmup=3", "attack=rider_delta_noise", "attack.adversaries=[1,3]", "checkpoint_every=2"]

    def fedshare(*arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert not ended.value.code

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fedshare("run", *keys, "rounds=4", f"folder={whole}")
    fedshare("run", *keys, "rounds=2", f"folder={parts}")
    fedshare("resume", str(parts), "--rounds", "4")
    same, sentence = verify(RunFolder(whole), RunFolder(parts))
    assert same, sentence
    row = RunFolder(whole).rows()[-1]
    assert row["adversaries"] == [1, 3]
    honest = [row["per_client"]["accuracy"][client] for client in "024"]
    assert row["accuracy_honest"] == pytest.approx(sum(honest) / 3)
    assert row["adversaries_removed"] + row["honest_removed"] == len(row["removed"])
