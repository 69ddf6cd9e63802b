"""Write a trained model as an ONNX file.

    $ python -m lenet.export --checkpoint runs/mnist/best lenet.onnx

It takes ``images``, float32 (n, channels, height, width), gray or RGB pixels
from 0 to 255, for any n, and gives ``logits`` and ``probabilities``, float32
(n, classes). Class names, where there are any, are in its metadata.
"""

from ofrecord.environment import check_environment

check_environment(__name__)

import json
import os

import numpy as np

from ofrecord.cli import ArgumentParser, InputError, run, say

from .checkpoint import open_checkpoint

OPSET, IR_VERSION = 13, 8  # old enough for any onnxruntime since 1.10


def main():
    args = parse_args()
    try:
        import onnx
    except ImportError:
        raise InputError("onnx is not installed: pip install onnx==1.14.1")
    model = make_onnx(open_checkpoint(args.checkpoint).load_model())
    onnx.checker.check_model(model)
    try:
        with open(args.output + ".new", "wb") as file:
            file.write(model.SerializeToString())
        os.replace(args.output + ".new", args.output)
    except OSError as error:
        raise InputError("cannot write {}: {}".format(args.output, error.strerror))
    say("{}: images float32 (n, {}, {}, {}) -> logits, probabilities float32 (n, {})".format(
        args.output, *[dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:]],
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value))


def parse_args():
    parser = ArgumentParser(prog="python -m lenet.export", description="Write a trained model as an ONNX file.")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the model: a folder last/ or best/ of a run")
    parser.add_argument("output", metavar="FILE.onnx")
    return parser.parse_args()


def make_onnx(model):
    """An onnx.ModelProto of a LeNet, with the normalisation of its pixels."""
    from onnx import TensorProto, helper, numpy_helper

    spec = model.spec
    constants = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name in ("mean", "std"):
        constants[name] = np.float32(getattr(spec, name)).reshape(1, -1, 1, 1)

    def node(kind, inputs, output, **attributes):
        return helper.make_node(kind, inputs.split(), output.split(), name=output, **attributes)
    convolution = {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}
    pooling = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Sub", "images mean", "centered"),
        node("Div", "centered std", "normalized"),
        node("Conv", "normalized conv1.weight conv1.bias", "convolved1", **convolution),
        node("Relu", "convolved1", "active1"),
        node("MaxPool", "active1", "pooled1", **pooling),
        node("Conv", "pooled1 conv2.weight conv2.bias", "convolved2", **convolution),
        node("Relu", "convolved2", "active2"),
        node("MaxPool", "active2", "pooled2", **pooling),
        node("Flatten", "pooled2", "flat"),
        node("Gemm", "flat dense1.weight dense1.bias", "dense", transB=1),
        node("Relu", "dense", "features"),
        node("Gemm", "features dense2.weight dense2.bias", "logits", transB=1),
        node("Softmax", "logits", "probabilities", axis=1),
    ]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "LeNet",
        [helper.make_tensor_value_info("images", float32, ["n", spec.channels, spec.height, spec.width])],
        [helper.make_tensor_value_info(name, float32, ["n", spec.classes]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="lenet.export")
    model.ir_version = IR_VERSION
    if spec.class_names:
        helper.set_model_props(model, {"class_names": json.dumps(spec.class_names, ensure_ascii=False)})
    return model


if __name__ == "__main__":
    run(main)
