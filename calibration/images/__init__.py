"""Image sets: folders, archives and the built-in photographs, read in a fixed order."""

from calibration.images.arrays import InMemoryImages
from calibration.images.image_set import Batch, ImageSet, ImageSource, open_image_set

__all__ = ["Batch", "ImageSet", "ImageSource", "InMemoryImages", "open_image_set"]
