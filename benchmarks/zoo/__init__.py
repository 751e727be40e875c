"""Builds networks saved by other tools, and judges them on the images of CIFAR-10: ``docs/zoo.md``."""
