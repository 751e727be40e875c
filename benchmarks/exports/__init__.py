"""Networks of torchvision and timm as their users export them, each checked against its module: ``docs/exports.md``."""
