"""Export a trained model to an ONNX file.

    $ python -m lenet.export --checkpoint runs/mnist/best.npz lenet.onnx

Its input ``images`` is float32 (n, channels, height, width), gray or RGB pixels
from 0 to 255, for any n; its outputs ``logits`` and ``probabilities`` are float32
(n, num_classes). Class names, if there are any, are in its metadata.
"""

from runtime.environment import check_environment

check_environment(__name__)

import json

import numpy as np

from runtime.atomic import replace_file
from runtime.cli import ArgumentParser, InputError, os_errors, output, run_main

from .checkpoint import Checkpoint, check_layout, open_checkpoint

MOST = 2**31 - 2**20  # bytes of weights: protobuf's limit, less what else is in a file
OPSET, IR_VERSION = 13, 8  # old enough for any onnxruntime since 1.10

CONVOLUTION = {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}
POOLING = {"kernel_shape": [2, 2], "strides": [2, 2]}
NODES = (  # LeNet.forward() in lenet_train.py: (operator, inputs, output, attributes)
    ("Sub", "images mean", "centered", {}),
    ("Div", "centered std", "normalized", {}),
    ("Conv", "normalized conv1.weight conv1.bias", "convolved1", CONVOLUTION),
    ("Relu", "convolved1", "active1", {}),
    ("MaxPool", "active1", "pooled1", POOLING),
    ("Conv", "pooled1 conv2.weight conv2.bias", "convolved2", CONVOLUTION),
    ("Relu", "convolved2", "active2", {}),
    ("MaxPool", "active2", "pooled2", POOLING),
    ("Flatten", "pooled2", "flat", {}),
    ("Gemm", "flat dense1.weight dense1.bias", "dense", {"transB": 1}),
    ("Relu", "dense", "features", {}),
    ("Gemm", "features dense2.weight dense2.bias", "logits", {"transB": 1}),
    ("Softmax", "logits", "probabilities", {"axis": 1}),
)


def main() -> None:
    parser = ArgumentParser(
        prog="python -m lenet.export", description="Export a trained model to an ONNX file."
    )
    weights = "last.npz or best.npz of a run"
    parser.add_argument("--checkpoint", required=True, metavar="FILE.npz", help=weights)
    parser.add_argument("output", metavar="FILE.onnx")
    args = parser.parse_args()
    if not args.output.endswith(".onnx"):  # replacing a checkpoint or /dev/null is not meant
        parser.error(f"{args.output!r}: the file's name must end in .onnx")
    try:
        import onnx
    except ImportError as error:
        raise InputError("onnx is not installed: pip install onnx -c constraints.txt") from error
    checkpoint = open_checkpoint(args.checkpoint)
    size = sum(weights.nbytes for weights in checkpoint.weights.values())
    if size > MOST:
        reason = f"its weights take {size:,} bytes, and an ONNX file holds 2 GB at most"
        raise InputError(f"{args.checkpoint}: {reason}: train with a smaller --image_size")
    spec, model = checkpoint.info.spec, make_onnx(checkpoint)
    onnx.checker.check_model(model)
    with os_errors("write", args.output), replace_file(args.output) as file:
        file.write(model.SerializeToString())
    images = f"images float32 (n, {spec.channels}, {spec.height}, {spec.width})"
    output(f"{args.output}: {images} -> logits, probabilities float32 (n, {spec.num_classes})")


def make_onnx(checkpoint: Checkpoint):
    """Return a LeNet, including the normalization of its pixels, as an onnx.ModelProto.

    Raises InputError for the weights of another network than NODES compute.
    """
    from onnx import TensorProto, helper, numpy_helper

    spec = checkpoint.info.spec
    shapes = {
        "conv1": (32, spec.channels, 5, 5),
        "conv2": (64, 32, 5, 5),
        "dense1": (512, 64 * (spec.height // 4) * (spec.width // 4)),
        "dense2": (spec.num_classes, 512),
    }
    expected = {f"{layer}.weight": (shape, "float32") for layer, shape in shapes.items()}
    expected |= {f"{layer}.bias": (shape[:1], "float32") for layer, shape in shapes.items()}
    check_layout(checkpoint.path, checkpoint.weights, expected)
    constants = dict(checkpoint.weights)
    for name, figures in ("mean", spec.mean), ("std", spec.scale):
        constants[name] = np.float32(figures).reshape(1, -1, 1, 1)

    def tensor(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs.split(), [name], **more)
            for kind, inputs, name, more in NODES
        ],
        "LeNet",
        [tensor("images", spec.channels, spec.height, spec.width)],
        [tensor(name, spec.num_classes) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, producer_name="lenet.export")
    model.ir_version = IR_VERSION
    if spec.class_names:
        helper.set_model_props(model, {"class_names": json.dumps(spec.class_names)})
    return model


if __name__ == "__main__":
    run_main(main)
