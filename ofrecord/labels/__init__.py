"""Which images there are, and the label of each."""

from .files import kinds_of, list_images, similar_names
from .names import class_file_text, natural_key
from .options import SourceOptions, option
from .samples import SET_NAMES, Samples
from .sources import read_samples

__all__ = ["SET_NAMES", "Samples", "SourceOptions", "class_file_text", "kinds_of", "list_images"]
__all__ += ["natural_key", "option", "read_samples", "similar_names"]
