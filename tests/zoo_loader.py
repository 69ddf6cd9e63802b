"""Reads a dataset as the image loaders of OneFlow's model zoo do, in a process of its own.

``python zoo_loader.py ROOT PART_NUM TRAIN VALIDATION`` prints, for the training and the
validation set, a JSON list of [label, mean R, mean G, mean B] of so many of their images, in whole batches.
"""

import json
import os
import sys

BATCH, SIDE, SHORTER = 2, 32, 40


def loader(flow, root, mode, part_num):
    """A function that returns the next batch of images, normalized, and labels."""
    nn = flow.nn
    reader = nn.OFRecordReader(
        os.path.join(root, mode),
        batch_size=BATCH,
        data_part_num=part_num,
        part_name_suffix_length=5,
        random_shuffle=False,
    )
    label_of = nn.OFRecordRawDecoder("class/label", shape=(), dtype=flow.int32)
    norm = {"color_space": "RGB", "output_layout": "NCHW", "output_dtype": flow.float}
    norm.update(mean=[123.0, 117.0, 104.0], std=[58.0, 57.0, 57.5])
    if mode == "train":
        image_of = nn.OFRecordImageDecoderRandomCrop("encoded", color_space="RGB")
        resize = nn.image.Resize(target_size=[SIDE, SIDE])
        flip = nn.CoinFlip(batch_size=BATCH)
        normalize = nn.CropMirrorNormalize(**norm)
    else:
        image_of = nn.OFRecordImageDecoder("encoded", color_space="RGB")
        resize = nn.image.Resize(resize_side="shorter", keep_aspect_ratio=True, target_size=SHORTER)
        crop = {"crop_h": SIDE, "crop_w": SIDE, "crop_pos_y": 0.5, "crop_pos_x": 0.5}
        normalize = nn.CropMirrorNormalize(**crop, **norm)

    def next_batch():
        record = reader()
        images = resize(image_of(record))[0]
        images = normalize(images, flip()) if mode == "train" else normalize(images)
        return images, label_of(record)

    return next_batch


def main(root, part_num, **num_images):
    import numpy as np

    from lenet.engine import flow

    for mode, number in num_images.items():
        next_batch, found = loader(flow, root, mode, part_num), []
        for _ in range(number // BATCH):
            images, labels = (each.numpy() for each in next_batch())
            assert images.shape == (BATCH, 3, SIDE, SIDE) and labels.shape == (BATCH,)
            colors = images.mean(axis=(2, 3)) * [58.0, 57.0, 57.5] + [123.0, 117.0, 104.0]
            rows = zip(labels, colors, strict=True)
            found += [[int(label), *np.round(color, 1).tolist()] for label, color in rows]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main(sys.argv[1], int(sys.argv[2]), train=int(sys.argv[3]), validation=int(sys.argv[4]))
