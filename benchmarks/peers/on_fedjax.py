"""FedAvg in FedJAX: its own `federated_averaging`, with its default backend, which compiles a client's step.

FedJAX 0.0.17, of 2023, calls `jax.tree_map`, which newer versions of JAX do not have.
"""
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["fedjax==0.0.17", "jax==0.4.35", "jaxlib==0.4.35", "dm-haiku==0.0.13", "optax==0.2.5", "numpy==2.4.6"]
# ///

import time

import fedjax
import haiku as hk
import jax
import numpy as np
from arrays import CLASSES, LR, WORKLOADS, read
from fedjax.algorithms.fed_avg import federated_averaging
from report import arguments, report


def perceptron(*hidden: int) -> list:
    layers: list = [hk.Flatten()]
    for size in hidden:
        layers += [hk.Linear(size), jax.nn.relu]
    return [*layers, hk.Linear(CLASSES)]


def cnn() -> list:
    pool = hk.MaxPool(2, 2, "VALID")
    convolutions = [hk.Conv2D(32, 5, padding="VALID"), pool, jax.nn.relu, hk.Conv2D(64, 5, padding="VALID"), pool]
    return [*convolutions, jax.nn.relu, hk.Flatten(), hk.Linear(512), jax.nn.relu, hk.Linear(CLASSES)]


LAYERS = {
    "W1": cnn,
    "W2m": lambda: perceptron(200, 200),
    "W2c": cnn,
    "W3": perceptron,
    "W3b": lambda: perceptron(32),
}


def main() -> None:
    options = arguments()
    workload = WORKLOADS[options.workload]
    x, y = read(options.folder, options.workload)
    if len(workload.shape) == 3:
        x = np.ascontiguousarray(np.moveaxis(x, 2, -1))  # channels last, haiku's default
    clients = fedjax.InMemoryFederatedData({c: {"x": x[c], "y": y[c]} for c in range(workload.clients)})
    network = hk.transform(lambda batch: hk.Sequential(LAYERS[options.workload]())(batch["x"]))
    model = fedjax.create_model_from_haiku(
        network,
        {"x": x[0, :1], "y": y[0, :1]},
        train_loss=lambda batch, scores: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], scores),
    )
    algorithm = federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(LR),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=workload.batch, num_epochs=1),
    )
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    assert sum(leaf.size for leaf in jax.tree_util.tree_leaves(state.params)) == workload.parameters
    sampler = fedjax.client_samplers.UniformGetClientSampler(clients, workload.chosen, seed=0)
    seconds = []
    for _ in range(options.repeat + 1):
        began = time.perf_counter()
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - began)
    report("FedJAX, jit", options.workload, seconds, ["fedjax", "jax", "dm-haiku"])


if __name__ == "__main__":
    main()
