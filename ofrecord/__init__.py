"""OFRecord datasets on disk: records, the manifest, label files, image bytes.

Nothing here starts OneFlow's engine, so every command here starts at once and
also works where OneFlow cannot run. These functions may be relied on::

    from ofrecord import open_dataset, read_part, read_records, read_rows
"""

PUBLIC = ("open_dataset", "read_part", "read_records", "read_rows")


def __getattr__(name):
    """Import the public functions when one is first asked for. Raises ImportError without OneFlow."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'ofrecord' has no attribute {name!r}")
    try:
        from .dataset.images_csv import read_rows
        from .dataset.open_dataset import open_dataset, read_records
        from .record import read_part
    except ImportError as error:
        raise ImportError(
            f"ofrecord.{name} needs this project's packages ({error}); ofrecord.portable reads "
            "datasets without them"
        ) from error
    return dict(zip(PUBLIC, (open_dataset, read_part, read_records, read_rows)))[name]  # noqa: B905
