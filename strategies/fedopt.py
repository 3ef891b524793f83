"""FedOpt: the server takes the average change of the clients' models for a gradient, and steps with any optimizer.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 1. With SGD and momentum it is FedAvgM (Hsu et al.
2019), and with Adam FedAdam. DiLoCo (Douillard et al. 2023, arXiv 2311.08105) is the same with AdamW at the clients and
Nesterov's momentum at the server.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg
from fedshare.tensors import Tensors, parameters


@dataclass(frozen=True, kw_only=True)
class FedOpt(FedAvg):
    """Running statistics are averaged, without a step. torch's Adam corrects moments for bias; the paper's does not."""

    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]  # the server's, of torch.optim

    def __post_init__(self) -> None:
        try:
            self.optimizer([torch.zeros(1, 1, requires_grad=True)])
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from error

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "stepped": list(parameters(params)), "moments": {}}

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        params, average = state["params"], super().aggregate(state, round, uploads)["params"]
        stepped = {name: params[name].detach().clone().requires_grad_() for name in state["stepped"]}
        if not stepped:
            return state | {"params": average}
        optimizer = self.optimizer(stepped.values())
        groups = optimizer.state_dict()["param_groups"]
        # A copy: torch takes over the tensors themselves, and changes them in its step.
        optimizer.load_state_dict({"state": deepcopy(state["moments"]), "param_groups": groups})
        for name, parameter in stepped.items():
            parameter.grad = params[name] - average[name]
        optimizer.step()
        after = {name: parameter.detach() for name, parameter in stepped.items()}
        return state | {"params": average | after, "moments": optimizer.state_dict()["state"]}
