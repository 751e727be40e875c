"""Networks as other tools and people saved them, built and judged on the images of CIFAR-10: ``docs/zoo.md``."""
