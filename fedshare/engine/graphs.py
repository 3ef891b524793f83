"""A function of tensors as a flat list of operations, recorded once and replayed without a compiler."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from fedshare.engine.replay import Function, Replays
from fedshare.errors import brief, first_line

_SAME = torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default


class NotBatched(Exception):
    """The work cannot be batched. The message is the reason, in one line."""


class Product(NamedTuple):
    """A tensor ``left @ right`` that has not been computed: ``[clients, m, k]`` and ``[clients, k, n]``."""

    left: Tensor
    right: Tensor

    def computed(self) -> Tensor:
        return torch.bmm(self.left, self.right)


Result = Tensor | Product


class Graph:
    """Takes values of the same form as `values`, and returns what `function` does, as a flat list.

    `products`: how many results, the first ones, are returned as a `Product` where they are one. Results are valid
    until the next call of any graph of the same `replays`. Raises NotBatched if the function's code depends on more
    than the form of its values.
    """

    def __init__(
        self, function: Callable[..., Any], values: Sequence[Any], replays: Replays, products: int = 0
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        try:
            self._module: GraphModule = make_fx(function)(*values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any of a user's model
            reason = brief(first_line(error), 120)
            raise NotBatched(f"the model cannot be batched: {reason}") from error
        self._factored = self._flatten(products)
        self._module.graph.eliminate_dead_code()
        self._module.recompile()
        self._replays = replays
        self._run: Function | None = None  # prepared in the first call

    def __call__(self, *values: Any) -> list[Result]:
        leaves = torch.utils._pytree.tree_leaves(values)
        if self._run is None:
            self._run = self._replays(self._module, leaves)
        found = self._run(*leaves)
        results: list[Result] = []
        rest = iter(found)
        for factored in self._factored:
            results.append(Product(next(rest), next(rest)) if factored else next(rest))
        return results

    def _flatten(self, products: int) -> list[bool]:
        """Make the graph's arguments and results flat lists; return which results are now two factors."""
        graph = self._module.graph
        graph.set_codegen(CodeGen())
        end = next(node for node in graph.nodes if node.op == "output")
        returned: Any = end.args[0]
        nodes: list[Node] = list(returned) if isinstance(returned, list | tuple) else [returned]
        flat: list[Node] = []
        factored = []
        for place, node in enumerate(nodes):
            found = _factors(node) if place < products else None
            factored.append(found is not None)
            if found is None:
                flat.append(node)
                continue
            product, transposed = found
            left, right = (factor for factor in product.args if isinstance(factor, Node))
            with graph.inserting_before(end):
                if transposed:
                    swap = torch.ops.aten.transpose.int
                    left, right = (graph.call_function(swap, (factor, 1, 2)) for factor in (right, left))
            flat += [left, right]
        end.args = (flat,)
        return factored


def _factors(node: Node) -> tuple[Node, bool] | None:
    """Return the matrix product that a result is, and whether it is transposed; None if it is none."""
    transposed = False
    while len(node.users) == 1:
        if node.target is torch.ops.aten.bmm.default:
            return node, transposed
        if node.target is torch.ops.aten.transpose.int and set(node.args[1:]) == {1, 2}:
            transposed = not transposed
        elif node.target not in _SAME or _shape(node) is None or _shape(node) != _shape(node.args[0]):
            return None
        (node, *_) = node.all_input_nodes
    return None


def _shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val", node.meta.get("tensor_meta")) if isinstance(node, Node) else None
    return None if value is None else tuple(value.shape)
