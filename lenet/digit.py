"""Make a photo, scan or drawing of one digit look like MNIST's digits.

MNIST's are light on black, scaled into 20x20 pixels of 28x28, with their
centre of mass in the middle (Y. LeCun, C. Cortes, C. Burges: The MNIST
database of handwritten digits), and their strokes are some 2.5 pixels wide.
"""

import cv2
import numpy as np

SIZE, BOX, STROKE = 28, 20, 2.5  # pixels
WORKING_SIZE = 480  # pixels of the longer side; enough for any pen
FAINTEST = 25  # of 255: what differs less from the ground is its own grain


class NoDigit(Exception):
    """There is nothing in the picture that could be one."""


def is_mnist_like(spec):
    """Was a model made for MNIST, or what looks like it: 28x28 gray on black, ten classes that are only numbers?"""
    return ((spec.channels, spec.height, spec.width, spec.classes, spec.class_names) == (1, SIZE, SIZE, 10, None)
            and spec.mean[0] < 64)


def is_prepared(gray):
    """Is it a digit as MNIST has them: of that size, and on black?"""
    return gray.shape == (SIZE, SIZE) and np.median(border(gray)) < 128


def border(gray):
    """The outermost pixels."""
    return np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])


def prepare_digit(gray):
    """uint8 (height, width), one digit on plain ground, dark on light or light on dark -> uint8 (28, 28) like MNIST's.

    Raises NoDigit where there is nothing on the ground.
    """
    scale = WORKING_SIZE / max(gray.shape)
    gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    gray = cv2.GaussianBlur(gray, (5, 5), 0)
    if is_dark_on_light(gray):
        gray = 255 - gray
    ink = cv2.subtract(gray, ground(gray))
    # Otsu's threshold alone takes shadows for ink where there is little ink.
    threshold = max(cv2.threshold(ink, 0, 255, cv2.THRESH_OTSU)[0], 0.4 * ink.max())
    mask = digit_parts(np.where(ink > threshold, 255, 0).astype(np.uint8))
    if mask is None or ink.max() < FAINTEST:
        raise NoDigit
    left, top, width, height = cv2.boundingRect(mask)
    longer = max(width, height)
    mask = thicken(mask, STROKE * longer / BOX)
    left, top, width, height = cv2.boundingRect(mask)
    digit = mask[top:top + height, left:left + width]
    factor = BOX / max(width, height)
    digit = cv2.resize(digit, (max(round(width * factor), 1), max(round(height * factor), 1)), interpolation=cv2.INTER_AREA)
    return centered(digit)


def is_dark_on_light(gray):
    """Strokes differ from what is around them more than what is around them differs from them."""
    difference = gray.astype(np.float32) - cv2.GaussianBlur(gray, (0, 0), max(gray.shape) / 10).astype(np.float32)
    return -difference.min() > difference.max()


def ground(gray):
    """The paper behind the (light) ink, with its shadows: what is left where nothing narrower than a third is."""
    side = max(gray.shape) // 3 | 1
    small = cv2.erode(cv2.medianBlur(gray, 5), np.ones((side, side), np.uint8))
    return cv2.blur(cv2.dilate(small, np.ones((side, side), np.uint8)), (side, side))


def digit_parts(mask):
    """The mask without specks, and without what comes in from the edge (a shadow, a table); None if nothing is left."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return None
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the ground
    inner = areas.copy()
    inner[np.unique(border(labels))] = 0
    if inner.max() >= 0.1 * areas.max():  # otherwise the digit itself touches the edge
        areas = inner
    if areas.max() < 1e-4 * mask.size:
        return None
    return np.where((areas >= 0.1 * areas.max())[labels], 255, 0).astype(np.uint8)


def thicken(mask, width):
    """Strokes that are thinner than ``width`` pixels made that wide."""
    mask = cv2.copyMakeBorder(mask, *[int(width) + 1] * 4, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    missing = width - 4 * distance[mask > 0].mean()  # a stroke's pixels are a quarter of its width from its edge, on average
    if missing < 1:
        return mask
    side = int(missing) + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def centered(digit):
    """On 28x28 black pixels, with its centre of mass in the middle."""
    height, width = digit.shape
    moments = cv2.moments(digit)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    left = int(np.clip(round((SIZE - 1) / 2 - x), 0, SIZE - width))
    top = int(np.clip(round((SIZE - 1) / 2 - y), 0, SIZE - height))
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    canvas[top:top + height, left:left + width] = digit
    return canvas
