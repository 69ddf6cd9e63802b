"""Datasets on disk: their manifest, the table of their images, their folder."""
