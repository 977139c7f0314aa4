"""FastGRNN's forward pass beside onnxruntime on the same weights, float32, one thread each.

The shapes are those of the router: a hundred candidates of five features, and a hundred prompts of eight embedded
chunks. The second is all matrix product, so the row says which kernels numpy's BLAS takes. Both sides choose theirs by
the processor: a pin of one side's (OPENBLAS_CORETYPE, set where runs have to agree bit for bit) is lifted.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # these are read when numpy is imported
PINNED = os.environ.pop("OPENBLAS_CORETYPE", None)

import numpy as np  # noqa: E402 - after its settings
import onnx  # noqa: E402 - the same
import onnxruntime  # noqa: E402 - the same
import threadpoolctl  # noqa: E402 - the same
from onnx import helper, numpy_helper  # noqa: E402 - the same

from router.fastgrnn import CompiledFastGRNN, FastGRNN, FastGRNNConfig  # noqa: E402 - the same
from tests.benchmarks import routing  # noqa: E402 - the same
from tests.benchmarks.paired import Result, compare  # noqa: E402 - the same


def unrolled(network: FastGRNN, batch: int, steps: int) -> onnxruntime.InferenceSession:
    """Return the network as an ONNX graph without loops: the projection of all steps at once, then step by step."""
    parameters = network.parameters
    scalars = {name: 1.0 / (1.0 + np.exp(-parameters[name])) for name in ("zeta", "nu")}
    constants = {**parameters, **scalars, "one": np.ones(1, np.float32), "axis": np.array([1], np.int64)}
    nodes = []

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def times(values: str, name: str) -> str:
        factors = [name] if name in parameters else [f"{name}1", f"{name}2"]
        for factor in factors:
            values = node("MatMul", values, factor)
        return values

    projected = times("inputs", "W")
    parts = [projected]
    if steps > 1:
        parts = [f"part_{t}" for t in range(steps)]
        nodes.append(helper.make_node("Split", [projected], parts, axis=1, num_outputs=steps))
    state = ""
    for part in parts:
        a = node("Squeeze", part, "axis")
        if state:
            a = node("Add", a, times(state, "U"))
        z = node("Sigmoid", node("Add", a, "bias_gate"))
        c = node("Tanh", node("Add", a, "bias_update"))
        new = node("Mul", node("Add", node("Mul", node("Sub", "one", z), "zeta"), "nu"), c)
        state = node("Add", node("Mul", z, state), new) if state else new
    nodes.append(helper.make_node("Gemm", [state, "head_weight", "head_bias"], ["logits"]))
    used = {name for made in nodes for name in made.input}
    config = network.config
    graph = helper.make_graph(
        nodes,
        "fastgrnn",
        [helper.make_tensor_value_info("inputs", onnx.TensorProto.FLOAT, [batch, steps, config.input_size])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, config.output_size])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _forward(steps: int, config: FastGRNNConfig, *, calls: int, reach: float) -> Result:
    network = FastGRNN.initialise(config, seed=1)
    inputs = np.random.default_rng(0).standard_normal((100, steps, config.input_size)).astype(np.float32)
    compiled, session = CompiledFastGRNN(network), unrolled(network, 100, steps)
    difference = np.abs(compiled.logits(inputs) - session.run(None, {"inputs": inputs})[0]).max()
    assert difference < 1e-5, f"the two disagree by {difference}"
    rank = f" rank {config.rank_w}" if config.rank_w else ""
    return compare(
        f"FastGRNN forward, 100 × T{steps} × D{config.input_size} × H{config.hidden_size}{rank}",
        lambda: compiled.logits(inputs),
        f"onnxruntime {onnxruntime.__version__}, same weights",
        lambda: session.run(None, {"inputs": inputs}),
        calls=calls,
        reach=reach,
        note=f"BLAS: {', '.join(info['architecture'] for info in threadpoolctl.threadpool_info())}"
        + (f" (pin to {PINNED} lifted)" if PINNED else ""),
    )


def candidates() -> Result:
    return _forward(1, FastGRNNConfig(5, 8), calls=2000, reach=0.8)


def prompts() -> Result:
    return _forward(8, FastGRNNConfig(384, 32, 2), calls=200, reach=1.2)


def prompts_of_low_rank() -> Result:
    return _forward(8, FastGRNNConfig(384, 32, 2, rank_w=8, rank_u=8), calls=200, reach=1.2)


CASES = [candidates, prompts, prompts_of_low_rank, *routing.CASES]
