"""The disk side: OFRecord files, the dataset's manifest, label files, image bytes.

Nothing here starts OneFlow's engine, so everything here answers at once and
can be used where OneFlow cannot run.
"""
