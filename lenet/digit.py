"""Preparation of a photo, scan or drawing of one digit, so that it looks like MNIST's digits.

MNIST's are light on black, scaled into 20x20 pixels of 28x28, with their
centre of mass in the middle (Y. LeCun, C. Cortes, C. Burges: The MNIST
database of handwritten digits).
"""

import cv2
import numpy as np

from ofrecord.images import BadImage

from .spec import ModelSpec

SIZE, BOX = 28, 20  # pixels
WORKING_SIZE = 240  # pixels of the longer side
FAINTEST = 25  # of 255: smaller differences from the background are its own grain


def is_mnist_like(spec: ModelSpec) -> bool:
    """Whether a model was made for 28x28 gray images, light on black, of the classes 0 to 9."""
    shape = (spec.channels, spec.height, spec.width)
    names = [spec.class_name(label) for label in range(spec.num_classes)]
    return shape == (1, SIZE, SIZE) and names == list("0123456789") and spec.mean[0] < 64


def is_prepared(gray: np.ndarray) -> bool:
    """Whether an image has MNIST's size and a black border already."""
    return gray.shape == (SIZE, SIZE) and np.median(border(gray)) < 128


def border(image: np.ndarray) -> np.ndarray:
    """Return the outermost pixels."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def prepare_digit(gray: np.ndarray) -> np.ndarray:
    """Return the digit in an image as MNIST has it, uint8 (28, 28).

    ``gray`` is uint8 (height, width): one digit on a plain background, dark on
    light or light on dark. Raises BadImage if there is none.
    """
    scale = WORKING_SIZE / max(gray.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    size = [max(round(side * scale), 1) for side in gray.shape[::-1]]
    gray = cv2.GaussianBlur(cv2.resize(gray, size, interpolation=how), (5, 5), 0)
    # Strokes are narrow: a median over more than their width is the paper with its shadows.
    paper = cv2.medianBlur(gray, WORKING_SIZE // 3 | 1)
    ink = max(cv2.subtract(paper, gray), cv2.subtract(gray, paper), key=np.max)
    threshold = max(cv2.threshold(ink, 0, 255, cv2.THRESH_OTSU)[0], 0.4 * ink.max())
    _, components, stats, _ = cv2.connectedComponentsWithStats((ink > threshold).astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    inner = areas.copy()
    inner[np.unique(border(components))] = 0  # what reaches in from the edge, such as a shadow
    areas = inner if inner.max() >= 0.1 * areas.max() else areas
    if ink.max() < FAINTEST or areas.max() < 1e-4 * ink.size:
        raise BadImage("no digit found: expected an image of one digit on a plain background")
    mask = np.where((areas >= 0.1 * areas.max())[components], 255, 0).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    side = max(width, height)
    mask = cv2.dilate(mask, np.ones((max(side // BOX, 1),) * 2, np.uint8))  # thin pens
    digit = mask[top : top + height, left : left + width]
    size = [max(round(length * BOX / side), 1) for length in (width, height)]
    digit = cv2.resize(digit, size, interpolation=cv2.INTER_AREA)
    moments = cv2.moments(digit)
    shift = [(SIZE - 1) / 2 - moments[axis] / moments["m00"] for axis in ("m10", "m01")]
    return cv2.warpAffine(
        digit, np.float32([[1, 0, round(shift[0])], [0, 1, round(shift[1])]]), (SIZE, SIZE)
    )
