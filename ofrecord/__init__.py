"""OFRecord datasets on disk: records, the manifest, label files, image bytes.

Nothing here starts OneFlow's engine, so every command here starts at once and
also works where OneFlow cannot run.
"""
