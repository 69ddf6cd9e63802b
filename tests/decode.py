"""Decode a dataset with OneFlow and write it to stdout as .npz (run by conftest.py).

Arguments: folder, channels, number of parts, suffix length of the part names.
stdin: [(height, width), ...] of the records, in order.
"""

import ast
import io
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from lenet.engine import flow

folder, channels, part_num, suffix_length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
shapes = ast.literal_eval(sys.stdin.read())
reader = flow.nn.OFRecordReader(folder, batch_size=1, data_part_num=part_num, part_name_suffix_length=suffix_length)
read_bytes = flow.nn.OFRecordBytesDecoder("images")
read_label = flow.nn.OFRecordRawDecoder("labels", shape=(1,), dtype=flow.int32)
decode = flow.nn.image.decode(color_space="GRAY" if channels == 1 else "RGB")
arrays, labels = {}, []
for index, (height, width) in enumerate(shapes):
    record = reader()
    # Resizing to the size it should have changes nothing where it has that size, and shows where it has not.
    resized, scale = flow.nn.image.Resize(target_size=(width, height), channels=channels)(decode(read_bytes(record)))[:2]
    assert (scale.numpy() == 1).all(), "record {} is not {}x{}".format(index, width, height)
    arrays["image%d" % index] = resized.numpy()[0]
    labels.append(int(read_label(record).numpy().ravel()[0]))
file = io.BytesIO()
np.savez(file, labels=np.array(labels), **arrays)
sys.stdout.buffer.write(file.getvalue())
