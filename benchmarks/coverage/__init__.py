"""How many residual networks of torchvision and timm each tool quantizes, and how well: ``docs/coverage.md``."""
