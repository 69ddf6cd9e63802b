"""Image files: what their headers tell, their pixels as they are seen, and how they are encoded."""
# ruff: noqa: F401

from .formats import IMAGE_EXTENSIONS, MAX_FILE_SIZE, BadImage, ImageOptions
from .headers import read_header
from .messages import decoder_messages
from .pixels import decode, encode, may_be_reduced, resize
