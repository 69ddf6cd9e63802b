"""Preparation of a photo, scan or drawing of one digit, so that it looks like MNIST's digits.

MNIST's are light on black, scaled into 20x20 pixels of 28x28, with their
centre of mass in the middle (Y. LeCun, C. Cortes, C. Burges: The MNIST
database of handwritten digits), and their strokes are about 2.5 pixels wide.
"""

import cv2
import numpy as np

from .model import Spec

SIZE, BOX, STROKE = 28, 20, 2.5  # pixels
WORKING_SIZE = 480  # pixels of the longer side; enough for any pen
FAINTEST = 25  # of 255: smaller differences from the background are its own grain


class NoDigit(Exception):
    """The image contains nothing that could be a digit."""


def is_mnist_like(spec: Spec) -> bool:
    """Whether a model was made for images like MNIST's.

    They are 28x28, gray, light on black, of ten classes without names.
    """
    shape = (spec.channels, spec.height, spec.width)
    classes = (spec.num_classes, spec.class_names)
    return shape == (1, SIZE, SIZE) and classes == (10, None) and spec.mean[0] < 64


def is_prepared(gray: np.ndarray) -> bool:
    """Whether an image looks like MNIST's already: of that size, and on black."""
    return gray.shape == (SIZE, SIZE) and np.median(border(gray)) < 128


def border(gray: np.ndarray) -> np.ndarray:
    """Return the outermost pixels."""
    return np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])


def prepare_digit(gray: np.ndarray) -> np.ndarray:
    """Return the digit in an image as MNIST has it, uint8 (28, 28).

    ``gray`` is uint8 (height, width): one digit on a plain background, dark on
    light or light on dark. Raises NoDigit if the background is empty.
    """
    scale = WORKING_SIZE / max(gray.shape)
    gray = cv2.resize(
        gray,
        None,
        fx=scale,
        fy=scale,
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    gray = cv2.GaussianBlur(gray, (5, 5), 0)
    if is_dark_on_light(gray):
        gray = 255 - gray
    ink = cv2.subtract(gray, background(gray))
    # Otsu's threshold alone classifies shadows as ink where there is little ink.
    threshold = max(cv2.threshold(ink, 0, 255, cv2.THRESH_OTSU)[0], 0.4 * ink.max())
    mask = digit_parts(np.where(ink > threshold, 255, 0).astype(np.uint8))
    if mask is None or ink.max() < FAINTEST:
        raise NoDigit
    left, top, width, height = cv2.boundingRect(mask)
    longer = max(width, height)
    mask = thicken(mask, STROKE * longer / BOX)
    left, top, width, height = cv2.boundingRect(mask)
    digit = mask[top : top + height, left : left + width]
    factor = BOX / max(width, height)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return centered(cv2.resize(digit, size, interpolation=cv2.INTER_AREA))


def is_dark_on_light(gray: np.ndarray) -> bool:
    """Whether strokes are darker than their surroundings.

    Strokes differ more from the mean around them than the background does.
    """
    around = cv2.GaussianBlur(gray, (0, 0), max(gray.shape) / 10)
    difference = gray.astype(np.float32) - around.astype(np.float32)
    return -difference.min() > difference.max()


def background(gray: np.ndarray) -> np.ndarray:
    """Return the paper behind the (light) ink, with its shadows.

    Everything narrower than a third of the image is removed.
    """
    side = max(gray.shape) // 3 | 1
    small = cv2.erode(cv2.medianBlur(gray, 5), np.ones((side, side), np.uint8))
    return cv2.blur(cv2.dilate(small, np.ones((side, side), np.uint8)), (side, side))


def digit_parts(mask: np.ndarray) -> np.ndarray | None:
    """Return the mask without specks and without what reaches in from the edge (a shadow, a table).

    Returns None if nothing remains.
    """
    num_components, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if num_components < 2:
        return None
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    inner = areas.copy()
    inner[np.unique(border(labels))] = 0
    if inner.max() >= 0.1 * areas.max():  # otherwise the digit itself touches the edge
        areas = inner
    if areas.max() < 1e-4 * mask.size:
        return None
    return np.where((areas >= 0.1 * areas.max())[labels], 255, 0).astype(np.uint8)


def thicken(mask: np.ndarray, width: float) -> np.ndarray:
    """Return the mask with strokes at least ``width`` pixels wide."""
    mask = cv2.copyMakeBorder(mask, *[int(width) + 1] * 4, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    # On average, the pixels of a stroke are a quarter of its width away from its edge.
    missing = width - 4 * distance[mask > 0].mean()
    if missing < 1:
        return mask
    side = int(missing) + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def centered(digit: np.ndarray) -> np.ndarray:
    """Return the digit on 28x28 black pixels, with its centre of mass in the middle."""
    height, width = digit.shape
    moments = cv2.moments(digit)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    left = int(np.clip(round((SIZE - 1) / 2 - x), 0, SIZE - width))
    top = int(np.clip(round((SIZE - 1) / 2 - y), 0, SIZE - height))
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    canvas[top : top + height, left : left + width] = digit
    return canvas
