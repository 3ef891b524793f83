"""What each method of parameter-efficient fine-tuning trains, shares and leaves alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

import world
from fedshare import peft, seeds
from fedshare.client import Client, Training
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.experiments.config.compose import resolved
from fedshare.experiments.config.instantiate import make
from fedshare.models import MLP, ResNet, TextTransformer, ViT
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.peft import Adapter, Bias, Compacter, Full, Head, Method, Prompt, Shards
from fedshare.peft.compacter import Hypercomplex
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import digests
from fedshare.strategies.fedpeft import FedPEFT
from fedshare.tensors import Tensors
from fedshare.training.parts import Parts, Role
from fedshare.training.scratch import Scratch
from optional import needs

library = needs("peft")


def lora(**keys: object) -> Method:
    from peft import LoraConfig

    from fedshare.peft.library import Library

    return Library(config=LoraConfig(r=2, lora_alpha=4, target_modules=["qkv"]), **keys)  # type: ignore[arg-type]


def by_peft(config: str, **keys: object) -> Method:
    """Any method of peft, by the name of its config, on the attention's layers."""
    import peft as theirs

    from fedshare.peft.library import Library

    return Library(config=getattr(theirs, config)(**{"target_modules": ["qkv"]} | keys))


METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "head": Head,
    "bias": Bias,
    "prompt": lambda: Prompt(count=3),
    "prompt_shallow": lambda: Prompt(count=3, deep=False),
    "adapter": Adapter,
    "adapter_shared": lambda: Adapter(shared=True),
    "compacter": lambda: Compacter(reduction=4),
    "shards": lambda: Shards(budget=3, rank=4),
}
LIBRARY: dict[str, Callable[[], Method]] = {
    "lora": lora,
    "ffa_lora": lambda: lora(frozen=["*lora_A*"]),
    "fedsa_lora": lambda: lora(local=["*lora_B*"]),
    "ia3": lambda: by_peft("IA3Config", feedforward_modules=[]),
    "loha": lambda: by_peft("LoHaConfig", r=2),
    "vera": lambda: by_peft("VeraConfig", r=8),
    "vblora": lambda: by_peft("VBLoRAConfig", vector_length=8, num_vectors=6, topk=2),
}
ALL = METHODS | LIBRARY
every = pytest.mark.parametrize("name", [*METHODS, *(pytest.param(name, marks=library) for name in LIBRARY)])
# What begins as it was: the tokens of a prompt change the output at once.
NEUTRAL = [name for name in ALL if "prompt" not in name and name != "vblora"]
CLIENTS = 4


def vit() -> ViT:
    return ViT([1, 8, 8], 3, patch=4, dim=16, depth=3, heads=2)


def tuned(method: Method, make: Callable[[], nn.Module] = vit) -> tuple[nn.Module, Parts]:
    with seeds.scope(0, "model"):
        model = make()
    with seeds.scope(0, "peft"):
        return method.tune(model)


def images(count: int, *key: int) -> Examples:
    random = seeds.generator(0, "images", *key)
    y = torch.randint(3, (count,), generator=random)
    return Examples(torch.randn(count, 1, 8, 8, generator=random) + y[:, None, None, None], y)


def parts(sizes: tuple[int, ...] = (6, 9, 12, 15)) -> list[Part]:
    return [Part(images(size, client, 0), images(4, client, 1)) for client, size in enumerate(sizes)]


def population(
    name: str, make: Callable[[], nn.Module] = vit, shares: list[Part] | None = None, **training: object
) -> Population:
    keys = {"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1, "batch_size": 4} | training
    module, roles = tuned(ALL[name](), make)
    return Population(FedPEFT(), Scratch(module, parts=roles), Training(**keys), shares or parts(), 0)  # type: ignore[arg-type]


def run(network: Simulation, rounds: int = 2, per_round: int | None = None):  # type: ignore[no-untyped-def]
    strategy = network.population.strategy
    schedule = Schedule(rounds=rounds, seed=0, clients_per_round=per_round)
    return list(run_server(strategy, network, world.begin(network.population), schedule))


# What is trained.


VIT_B = {
    "full": (Full(), 85_875_556),
    "head": (Head(), 76_900),
    "bias": (Bias(), 179_812),
    "prompt": (Prompt(), 169_060),
    "adapter": (Adapter(), 1_856_740),
    "adapter_paper": (Adapter(shared=True, init="both"), 225_220),
    "prompt_shallow": (Prompt(deep=False), 84_580),
    "compacter": (Compacter(), 108_068),
    "shards": (Shards(), 150_628),
}


@library
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lora", 224_356),
        ("ffa_lora", 187_492),
        ("fedsa_lora", 113_764),
        ("ia3", 104_548),
        ("vera", 107_620),
        ("vblora", 289_892),
    ],
)
def test_the_options_by_peft_share_so_many_parameters_of_vit_b_16(name: str, count: int) -> None:
    method = make(resolved([f"peft={name}"]).peft, "peft", Method)
    with torch.device("meta"):
        model, roles = method.tune(ViT([3, 224, 224], 100, patch=16, dim=768, depth=12, heads=12))
    assert sum(p.numel() for n, p in model.named_parameters() if roles.roles[n] is Role.SHARED) == count


@pytest.mark.parametrize("name", VIT_B)
def test_vit_b_16_with_100_classes_trains_and_sends_what_the_closed_forms_say(name: str) -> None:
    method, count = VIT_B[name]
    with torch.device("meta"):  # shapes without memory
        model, roles = method.tune(ViT([3, 224, 224], 100, patch=16, dim=768, depth=12, heads=12))
    shared = {n: p for n, p in model.named_parameters() if roles.roles[n] is Role.SHARED}
    assert sum(parameter.numel() for parameter in shared.values()) == count
    assert Payload({"params": dict(shared)}).nbytes == 4 * count


def test_the_bytes_of_a_real_round_are_four_times_the_trained_parameters() -> None:
    with Simulation(partial(population, "bias")) as network:
        (done,) = run(network, 1)
        scratch = network.population.scratch
    count = sum(scratch.shapes[name].numel() for name in scratch.shared)
    assert count == sum(p.numel() for n, p in vit().named_parameters() if "bias" in n or n == "head.weight")
    assert done.row["bytes_up"] == done.row["bytes_down"] == 4 * count * CLIENTS


@every
def test_every_trained_tensor_moves_in_two_steps_and_no_other_moves_at_all(name: str) -> None:
    """Oracle 4: an adapter whose two layers both begin at zero never learns. Adam moves all that has a gradient."""
    here = population(name, batch_size=None, optimizer=partial(torch.optim.Adam, lr=0.01))
    client = here.client(0, {})
    client.load({})
    before = here.scratch.params(list(here.scratch.shapes))
    for round in (1, 2):
        client.fit(round)
    after = here.scratch.params(list(here.scratch.shapes))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(here.scratch.trainable)


def test_the_papers_shared_adapter_learns_one_vector_only() -> None:
    model, roles = tuned(Adapter(shared=True, init="both"))
    client = Population(
        FedPEFT(),
        scratch := Scratch(model, parts=roles),
        Training(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=5),
        parts(),
        0,
    ).client(0, {})
    client.load({})
    client.fit(1)
    stuck = {name for name in scratch.shared if torch.equal(scratch.params([name])[name], scratch.initial[name])}
    assert {name.partition("adapter.")[2] for name in stuck} == {"down.weight", "down.bias", "up.weight"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=library) if n in LIBRARY else n for n in NEUTRAL])
def test_what_is_added_changes_no_bit_of_the_first_logits(name: str) -> None:
    """Oracle 3."""
    x = images(5, 7).x
    with seeds.scope(0, "model"):
        plain = vit().eval()(x)
    assert torch.equal(tuned(ALL[name]())[0].eval()(x), plain)


def test_no_prompts_are_head_tuning_to_the_bit() -> None:
    """Oracle 3."""
    METHODS["none"] = ALL["none"] = lambda: Prompt(count=0)
    try:
        links = [[done.link.digest for done in run(Simulation(partial(population, name)))] for name in ("none", "head")]
    finally:
        del METHODS["none"], ALL["none"]
    assert links[0] == links[1]


@every
def test_what_is_frozen_is_the_same_everywhere_after_a_run_and_in_no_message(name: str) -> None:
    """Oracles 2 and 10."""
    here = Simulation(partial(population, name))
    scratch = here.population.scratch
    frozen = [n for n in scratch.shapes if scratch.parts.roles[n] is Role.FROZEN]
    before = digests({"theta": {n: scratch.whole[n] for n in frozen}})
    seen: set[str] = set()

    class Watched(world.Altered):
        def altered(
            self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
        ) -> dict[int, Payload]:
            for payload in [*downloads.values(), *answers.values()]:
                seen.update(tensor for group, tensor, _ in payload.sizes() if group == "params")
            return answers

    strategy = here.population.strategy
    watched = Watched(here, {})
    *_, done = run_server(strategy, watched, world.begin(here.population), Schedule(rounds=2, seed=0))
    assert digests({"theta": scratch.params(frozen)}) == before
    assert seen == set(scratch.shared) == set(done.state["params"])
    assert not seen & set(frozen)
    assert bool(frozen) == (name != "full")


@dataclass(frozen=True)
class Hashing(FedPEFT):
    """Each client remembers the digest of the backbone that it has trained on."""

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        upload = super().train(client, round, download)
        theta = {name: value for name, value in client.model.named_parameters() if name not in upload.tensors["params"]}
        client.state["theta"] = digests({"theta": theta})
        return upload


def hashing() -> Population:
    return replace(population("bias"), strategy=Hashing())


@pytest.mark.process
def test_the_backbone_hashes_the_same_in_every_process() -> None:
    """Oracle 2."""
    with Simulation(hashing, workers=2) as network:
        run(network, 3)
        scratch = network.population.scratch
        frozen = {name: scratch.whole[name] for name in scratch.parameters if name not in scratch.shared}
        assert len(frozen) > 10
        assert [state["theta"] for state in network.memories.states.values()] == [digests({"theta": frozen})] * CLIENTS


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["full", "prompt", "shards", *(pytest.param(n, marks=library) for n in ("fedsa_lora", "vera", "vblora"))]
)
def test_bits_do_not_depend_on_workers_nor_on_who_serves_whom(name: str) -> None:
    """Oracle 7: no optimizer outlives a client's round."""
    with Simulation(partial(population, name)) as here, Simulation(partial(population, name), 2) as parallel:
        assert [done.link for done in run(here)] == [done.link for done in run(parallel)]


def test_all_shared_is_plain_federated_averaging_to_the_bit() -> None:
    """Oracle 6."""

    def plain() -> Population:
        with seeds.scope(0, "model"):
            module = vit()
        training = Training(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=4)
        return Population(world.strategy("fedavg"), Scratch(module), training, parts(), 0)

    links = [[done.link.digest for done in run(Simulation(build))] for build in (plain, partial(population, "full"))]
    assert links[0] == links[1]


@pytest.mark.parametrize("name", ["full", "head", "bias", "adapter", "compacter", "shards"])
def test_one_full_batch_each_is_one_step_on_all_data(name: str) -> None:
    """Oracle 5."""
    shares = parts()
    (done,) = run(Simulation(partial(population, name, batch_size=None, shares=shares)), 1)
    x, y = (torch.cat([getattr(part.train, key) for part in shares]) for key in "xy")
    together = population(name, shares=[Part(Examples(x, y), shares[0].test)], batch_size=None)
    client = together.client(0, {})
    client.load({})
    client.fit(1)
    for tensor, value in client.params().items():
        torch.testing.assert_close(done.state["params"][tensor], value, rtol=0, atol=1e-6)


def test_one_client_a_round_gives_its_own_model_and_weights_are_exact_counts() -> None:
    """Oracle 8."""
    network = Simulation(partial(population, "bias"))
    (done,) = run(network, 1, per_round=1)
    (chosen,) = done.row["clients"]
    again = Simulation(partial(population, "bias"))
    download = Payload({"params": again.population.scratch.initial})
    upload = again.exchange(Purpose.TRAIN, 1, {chosen: download}).answers[chosen]
    assert all(torch.equal(done.state["params"][n], t) for n, t in upload.tensors["params"].items())

    whole = Simulation(partial(population, "bias"))
    (done,) = run(whole, 1)
    downloads = dict.fromkeys(range(CLIENTS), download)
    uploads = Simulation(partial(population, "bias")).exchange(Purpose.TRAIN, 1, downloads).answers
    sizes = [6, 9, 12, 15]  # 9 is no multiple of the batch size, and counts as 9
    for name, value in done.state["params"].items():
        by_hand = sum(size / 42 * uploads[client].tensors["params"][name].double() for client, size in enumerate(sizes))
        torch.testing.assert_close(value.double(), by_hand, rtol=0, atol=1e-6)


def test_clients_in_another_order_give_the_same_average() -> None:
    """Oracle 11; with one full batch, a client's number draws nothing."""
    shares, order = parts(), [2, 0, 3, 1]
    here, there = (
        run(Simulation(partial(population, "adapter", batch_size=None, shares=some)), 1)[0].state["params"]
        for some in (shares, [shares[client] for client in order])
    )
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=0, atol=1e-6)


# The partition under any strategy.


def test_a_local_part_never_travels_stays_with_its_client_and_differs_among_them() -> None:
    def personal() -> Population:
        module, roles = tuned(Full(local=["head.*"]))
        training = Training(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=4)
        return Population(world.strategy("fedavg"), Scratch(module, parts=roles), training, parts(), 0)

    network = Simulation(personal)
    done = run(network)[-1]
    scratch = network.population.scratch
    assert scratch.local == ["head.weight", "head.bias"]
    assert not {"head.weight", "head.bias"} & done.state["params"].keys()
    heads = [network.memories.states[client]["local"]["head.weight"] for client in range(CLIENTS)]
    assert len({digests({"head": head})["head"] for head in heads}) == CLIENTS
    client = network.population.client(1, network.memories.states[1])
    network.population.strategy.apply(client, Payload({"params": done.state["params"]}))
    assert torch.equal(client.model.head.weight, heads[1])


@pytest.mark.parametrize("strategy", world.STRATEGIES)
def test_every_strategy_stands_on_a_partition(strategy: str) -> None:
    """Shared, local and frozen together: only what is shared leaves a client, and the rest is where it should be."""

    def build() -> Population:
        module, roles = tuned(Bias(local=["blocks.0.*"]))
        training = Training(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=4)
        return Population(world.strategy(strategy), Scratch(module, parts=roles), training, parts(), 0)

    network = Simulation(build)
    scratch = network.population.scratch
    seen: set[str] = set()
    for done in run(network, 3):
        assert done.row["dropped"] == {}
        for state in network.memories.states.values():
            assert set(state["local"]) == set(scratch.local)
        seen |= set(done.state.get("params", {}))
    assert seen <= set(scratch.shared)
    frozen = [n for n in scratch.shapes if scratch.parts.roles[n] is Role.FROZEN]
    assert all(torch.equal(scratch.params([n])[n], scratch.whole[n]) for n in frozen)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_what_was_added_does_not() -> None:
    def norm() -> ResNet:
        return ResNet([1, 8, 8], 3, depth=8, widths=[4, 8, 16], norm="batch")

    for name in ("head", "bias"):
        scratch = population(name, norm).scratch
        scratch.train()
        assert [n for n, module in scratch.module.named_modules() if module.training] == ["head"]
        assert all(scratch.parts.roles[n] is Role.FROZEN for n in scratch.shapes if "running" in n)
    scratch = population("full", norm).scratch
    scratch.train()
    assert all(module.training for module in scratch.module.modules())
    assert all(scratch.parts.roles[n] is Role.SHARED for n in scratch.shapes if "running" in n)
    scratch = population("prompt").scratch
    scratch.train()
    training = {name for name, module in scratch.module.named_modules() if module.training}
    assert training == {"head", *(f"blocks.{n}.prompt{leaf}" for n in range(3) for leaf in ("", ".dropout"))}


def test_a_head_of_several_layers_trains_whole_with_its_dropout_and_statistics() -> None:
    def deep() -> ViT:
        model = vit()
        model.head = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))  # type: ignore[assignment]
        return model

    scratch = population("bias", deep).scratch
    scratch.train()
    assert all(module.training for module in scratch.module.head.modules())
    assert not scratch.module.blocks[0].training
    assert {name for name in scratch.shared if "running" in name} == {"head.1.running_mean", "head.1.running_var"}


@pytest.mark.parametrize("method", [Full(), Bias(), Head(), Prompt()])
def test_what_a_model_has_frozen_itself_stays_frozen(method: Method) -> None:
    def fixed() -> ViT:
        model = vit()
        model.pos_embed.requires_grad_(False)
        model.head.bias.requires_grad_(False)
        return model

    _, roles = tuned(method, fixed)
    assert roles.roles["pos_embed"] is roles.roles["head.bias"] is Role.FROZEN
    assert roles.roles["head.weight"] is Role.SHARED


# Each method by itself.


def test_hypercomplex_layers_multiply_by_a_sum_of_kronecker_products() -> None:
    with seeds.scope(0, "hypercomplex"):
        layer = Hypercomplex(nn.Parameter(torch.randn(2, 2, 2)), 6, 4, rank=2, zero=False)
        x = torch.randn(3, 5, 6)
    matrix = sum(torch.kron(layer.rule[i], layer.left[i] @ layer.right[i]) for i in range(2))
    torch.testing.assert_close(layer(x), x @ matrix)


def test_mixtures_of_shards_train_as_little_as_their_budget_with_a_higher_rank() -> None:
    model, roles = tuned(Shards(budget=3, rank=5, private=1, shards=4))
    shared = sum(p.numel() for n, p in model.named_parameters() if roles.groups.get(n) == "shards")
    assert shared == 3 * 3 * (16 + 48), "as LoRA of rank 3 on three layers of 16 to 48"
    mixtures = [block.attn.qkv.mixture for block in model.blocks]
    for way in ("chosen_down", "chosen_up"):
        own = [set(getattr(mixture, way)[:1].flatten().tolist()) for mixture in mixtures]
        assert len(set.union(*own)) == 3 * 4, "the private pieces of no two layers are the same"
        common = [set(getattr(mixture, way)[1:].flatten().tolist()) for mixture in mixtures]
        assert all(len(pieces) == 4 * 4 and not pieces & set.union(*own) for pieces in common)
    assert not torch.equal(mixtures[0].chosen_down, mixtures[0].chosen_up), "pairs are dissociated"
    nn.init.normal_(mixtures[0].pool.up)
    x = torch.eye(16)
    update = mixtures[1](x)
    assert torch.linalg.matrix_rank(update) == 5


def test_deep_prompts_replace_those_of_the_block_before_and_shallow_ones_go_on() -> None:
    lengths: list[int] = []
    for method in (Prompt(count=3), Prompt(count=3, deep=False)):
        model, _ = tuned(method)
        for block in model.blocks:
            block.norm1.register_forward_hook(lambda _, args, out: lengths.append(args[0].shape[1]))
        model.eval()(images(2, 3).x)
    assert lengths == [1 + 4 + 3] * 6


def test_the_tokens_before_each_block_are_its_own_or_what_became_of_the_first() -> None:
    def entering(method: Method) -> tuple[list[torch.Tensor], nn.Module]:
        seen: list[torch.Tensor] = []
        model, _ = tuned(method)
        for block in model.blocks:
            block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.eval()(images(2, 3).x)
        return seen, model

    seen, model = entering(Prompt(count=3))
    for x, block in zip(seen, model.blocks, strict=True):
        assert torch.equal(x[:, 1:4], block.prompt.tokens.expand(2, -1, -1)), "behind the class token"
    plain: list[torch.Tensor] = []
    with seeds.scope(0, "model"):
        bare = vit()
    bare.blocks[0].register_forward_pre_hook(lambda _, args: plain.append(args[0]))
    bare.eval()(images(2, 3).x)
    assert torch.equal(torch.cat([seen[0][:, :1], seen[0][:, 4:]], 1), plain[0]), "and the input is around them"
    seen, model = entering(Prompt(count=3, deep=False))
    assert torch.equal(seen[0][:, 1:4], model.blocks[0].prompt.tokens.expand(2, -1, -1))
    assert not torch.equal(seen[1][:, 1:4], seen[0][:, 1:4])
    assert not any(hasattr(block, "prompt") for block in model.blocks[1:])


def test_prompts_of_a_text_leave_its_padding_unseen() -> None:
    def text() -> TextTransformer:
        return TextTransformer(20, 8, 3, dim=16, depth=2, heads=2, dropout=0.0)

    model, _ = tuned(Prompt(count=3), text)
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0]])
    logits = model.eval()(tokens)
    torch.testing.assert_close(logits, model(tokens[:, :3]))
    causal, _ = tuned(Prompt(count=3), lambda: TextTransformer(20, 8, 20, dim=16, depth=2, heads=2, causal=True))
    assert causal.eval()(tokens).shape == (1, 8, 20)


@library
def test_ffa_lora_averages_exactly_and_plain_lora_does_not() -> None:
    """The average of B A over clients is avg(B) avg(A) only where A is the same everywhere."""

    def gap(name: str) -> float:
        network = Simulation(partial(population, name, epochs=3))
        (done,) = run(network, 1)
        again = Simulation(partial(population, name, epochs=3))
        download = Payload({"params": again.population.scratch.initial})
        uploads = again.exchange(Purpose.TRAIN, 1, dict.fromkeys(range(CLIENTS), download)).answers
        whole, scratch = done.state["params"], again.population.scratch
        a, b = (f"blocks.0.attn.qkv.lora_{side}.default.weight" for side in "AB")

        def product(params: Tensors) -> torch.Tensor:
            return params[b].double() @ (params.get(a, scratch.whole[a])).double()

        mean = sum(
            uploads[client].metrics["examples"] / 42 * product(uploads[client].tensors["params"]) for client in uploads
        )
        return float((mean - product(whole)).norm() / product(whole).norm())

    assert gap("ffa_lora") < 1e-5 < 1e-3 < gap("lora")


@library
def test_peft_learns_prompts_for_a_model_of_transformers() -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType
    from transformers import GPT2Config, GPT2LMHeadModel

    from fedshare.peft.library import Library

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=tokens).logits

    for config in (PromptTuningConfig, PrefixTuningConfig):
        method = Library(config=config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3), head=None)
        model, roles = tuned(method, Wrapped)
        shared = [n for n, p in model.named_parameters() if roles.roles[n] is Role.SHARED]
        assert shared
        assert all("prompt_encoder" in name for name in shared)
        assert model.eval()(torch.tensor([[1, 2, 3, 4]])).shape == (1, 4, 11)


def test_any_model_can_be_shared_in_full_with_a_head_or_without() -> None:
    roles = tuned(Full(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))[1]
    assert set(roles.groups.values()) == {"body"}
    assert set(roles.roles.values()) == {Role.SHARED}
    assert set(tuned(Full())[1].groups.values()) == {"body", "head"}


@library
def test_a_librarys_prompts_for_a_classifier_train_its_head_too() -> None:
    from peft import PromptTuningConfig, TaskType
    from transformers import BertConfig, BertForSequenceClassification

    from fedshare.peft.library import Library

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            keys = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            self.model = BertForSequenceClassification(BertConfig(vocab_size=11, num_labels=3, **keys))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits

    config = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3)
    model, roles = tuned(Library(config=config, head="model.classifier"), Wrapped)
    trained = [(n, p) for n, p in model.named_parameters() if roles.roles[n] is Role.SHARED]
    assert {roles.groups[name] for name, _ in trained} == {"peft", "head"}
    assert sum(p.numel() for n, p in trained if roles.groups[n] == "head") == 8 * 3 + 3
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for _, parameter in trained)


OTHERS: dict[str, dict[str, object]] = {  # of peft's methods for layers, what they need for layers so small
    "AdaLoraConfig": {"total_step": 10},
    "BOFTConfig": {"boft_block_size": 4},
    "C3AConfig": {"block_size": 8},
    "FourierFTConfig": {"n_frequency": 20},
    "FrodConfig": {},
    "HRAConfig": {},
    "LNTuningConfig": {"target_modules": ["norm1"]},
    "LoKrConfig": {},
    "MissConfig": {"r": 4},
    "OFTConfig": {},
    "OSFConfig": {},
    "PsoftConfig": {"r": 4},
    "PveraConfig": {},
    "RandLoraConfig": {"r": 4},
    "RoadConfig": {"group_size": 8},
    "ShiraConfig": {"r": 2},
    "TinyLoraConfig": {},
    "UniLoraConfig": {},
    "WaveFTConfig": {"n_frequency": 20},
}


def layered(config: str, seed: int = 0, **keys: object) -> Population:
    """Clients of a model with what `config` of peft adds to it. A skip where this peft has none of that name."""
    import peft as theirs

    if not hasattr(theirs, config):
        pytest.skip(f"peft {theirs.__version__} has no {config}")
    with seeds.scope(0, "model"):
        model = vit()
    with seeds.scope(seed, "peft"):
        model, roles = by_peft(config, **OTHERS.get(config, {}) | keys).tune(model)
    training = Training(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=4)
    return Population(FedPEFT(), Scratch(model, parts=roles), training, parts(), 0)


@library
@pytest.mark.parametrize("config", OTHERS)
def test_other_methods_of_peft_train_what_they_add_and_nothing_else(config: str) -> None:
    with Simulation(partial(layered, config)) as network:
        scratch = network.population.scratch
        frozen = [name for name in scratch.whole if scratch.parts.roles[name] is Role.FROZEN]
        done = run(network)[-1]
    moved = {name for name, value in done.state["params"].items() if not torch.equal(value, scratch.initial[name])}
    assert moved == set(scratch.shared) > {"head.weight", "head.bias"}
    assert all(torch.equal(scratch.params([name])[name], scratch.whole[name]) for name in frozen)
    assert done.row["dropped"] == {}


@library
@pytest.mark.parametrize(
    ("config", "seed", "keys"),
    [
        ("VeraConfig", "projection_prng_key", {"r": 8}),
        ("PveraConfig", "projection_prng_key", {}),
        ("RandLoraConfig", "projection_prng_key", {"r": 4}),
        ("TinyLoraConfig", "projection_seed", {}),
    ],
)
def test_fixed_random_parts_come_of_the_run_s_seed_unless_they_have_one(
    config: str, seed: str, keys: dict[str, object]
) -> None:
    def fixed(run_seed: int, **more: object) -> Tensors:
        scratch = layered(config, run_seed, **keys | more).scratch
        names = {name for name in scratch.whole if name not in dict(vit().named_parameters())}
        return {n: scratch.whole[n] for n in sorted(names) if scratch.parts.roles[n] is Role.FROZEN}

    assert digests({"a": fixed(0)}) == digests({"a": fixed(0)}) != digests({"a": fixed(1)})
    assert digests({"a": fixed(0, **{seed: 7})}) == digests({"a": fixed(1, **{seed: 7})})


@library
@pytest.mark.parametrize("config", ["VeraConfig", "TinyLoraConfig", "RandLoraConfig"])
def test_projections_are_part_of_the_model_that_is_compared_whatever_peft_would_save(config: str) -> None:
    saved, unsaved = (layered(config, r=4, save_projection=saved).scratch for saved in (True, False))
    assert saved.whole.keys() == unsaved.whole.keys() > set(saved.shared)
    assert saved.fingerprint == unsaved.fingerprint


@library
@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("LoHaConfig", {"rank_dropout": 0.5}),
        ("LoKrConfig", {"rank_dropout": 0.5}),
        ("VeraConfig", {"vera_dropout": 0.5}),
    ],
)
def test_the_dropout_of_what_is_added_is_on_in_training_and_the_layer_itself_stays_in_evaluation(
    config: str, keys: dict[str, object]
) -> None:
    scratch, layer = layered(config, r=8, init_weights=False, **keys).scratch, "blocks.0.attn.qkv"
    x = images(3, 1).x
    scratch.train()
    modules = dict(scratch.module.named_modules())
    assert modules[layer].training
    assert not modules[f"{layer}.base_layer"].training
    assert not modules["blocks.0"].training
    with torch.no_grad(), seeds.scope("draws"):
        assert not torch.equal(modules[layer](x.new_ones(1, 16)), modules[layer](x.new_ones(1, 16)))


@library
def test_a_generator_that_goes_on_from_client_to_client_is_refused() -> None:
    with pytest.raises(UserError, match=r"^peft.config.generator_seed: must be null"):
        layered("PveraConfig", generator_seed=3)


@library
@pytest.mark.parametrize("config", ["AdaptionPromptConfig", "CPTConfig", "CartridgeConfig"])
def test_methods_for_whole_models_of_transformers_train_only_what_they_mean_to(config: str) -> None:
    import peft as theirs
    from transformers import LlamaConfig, LlamaForCausalLM

    from fedshare.peft.library import Library

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            keys = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
            self.model = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=16, **keys))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=tokens).logits

    if not hasattr(theirs, config):
        pytest.skip(f"peft {theirs.__version__} has no {config}")
    made: dict[str, dict[str, object]] = {
        "AdaptionPromptConfig": {"adapter_len": 3, "adapter_layers": 1},
        "CPTConfig": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
        "CartridgeConfig": {"num_virtual_tokens": 3},
    }
    method = Library(config=getattr(theirs, config)(task_type="CAUSAL_LM", **made[config]), head=None)
    model, roles = tuned(method, Wrapped)
    scratch, tokens = Scratch(model, parts=roles), torch.tensor([[1, 2, 3, 4]])
    ends = {
        "AdaptionPromptConfig": {"adaption_prompt", "adaption_gate"},
        "CPTConfig": {"delta_embedding.weight"},
        "CartridgeConfig": {"trainable_embedding"},
    }
    assert all(name.endswith(tuple(ends[config])) for name in scratch.shared)
    assert len(scratch.shared) == len(ends[config])
    before = scratch.flat.clone()
    for _ in range(2):
        nn.functional.cross_entropy(scratch.module(tokens)[0], tokens[0]).backward()
        with torch.no_grad():
            scratch.flat[: len(scratch.gradient)] -= scratch.gradient
    assert scratch.module(tokens).shape == (1, 4, 11)
    assert not torch.equal(scratch.flat, before)


@library
@pytest.mark.parametrize("keys", [{"bias": "all"}, {"modules_to_save": ["head"]}])
def test_what_peft_would_train_beside_the_partition_is_refused(keys: dict[str, object]) -> None:
    from peft import LoraConfig

    from fedshare.peft.library import Library

    with pytest.raises(UserError, match=f"peft.config.{next(iter(keys))}"):
        tuned(Library(config=LoraConfig(target_modules=["qkv"], **keys)))  # type: ignore[arg-type]


REFUSED: dict[str, tuple[Callable[[], Method], Callable[[], nn.Module], str]] = {
    "no head": (lambda: Bias(head="classifier"), vit, "peft.head=classifier: the model has no such module"),
    "no blocks": (Adapter, lambda: MLP([1, 8, 8], 3), "peft.blocks=blocks: the model has no sequence of blocks"),
    "convolutions": (Prompt, lambda: MLP([1, 8, 8], 3), "peft.blocks=blocks"),
    "no such layer": (
        lambda: Shards(targets=["q"]),
        vit,
        r"peft.targets=\['q'\]: .*are called fc1, fc2, head, proj, qkv",
    ),
    "too few pieces": (lambda: Shards(rank=30), vit, "peft.rank=30: 3 layers of 16 to 48 share too few pieces"),
    "odd shards": (lambda: Shards(shards=5, rank=2), vit, "peft.shards=5: must divide"),
    "odd n": (lambda: Compacter(n=3), vit, "peft.n=3: must divide the lengths of the vectors, 16"),
    "no such tensor": (
        lambda: Bias(local=["body.*"]),
        vit,
        r"peft.local: body.\* is none of the tensors that are trained",
    ),
    "not trained": (lambda: Bias(frozen=["pos_embed"]), vit, "peft.frozen: pos_embed is none of the tensors"),
    "nothing": (lambda: Head(frozen=["*"]), vit, "it leaves nothing to train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_model_is_said_in_a_line(case: str) -> None:
    method, make, line = REFUSED[case]
    with pytest.raises(UserError, match=line):
        tuned(method(), make)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        (Prompt, {"count": -1}),
        (Prompt, {"dropout": 1.0}),
        (Adapter, {"reduction": 0}),
        (Compacter, {"rank": 0}),
        (Shards, {"private": 3}),
        (Shards, {"shards": 0}),
    ],
)
def test_impossible_values_are_refused(method: type[Method], keys: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(keys))):
        method(**keys)


def test_every_method_is_exported() -> None:
    assert {name for name in dir(peft) if not name.startswith("_") and isinstance(getattr(peft, name), type)} == set(
        peft.__all__
    )
