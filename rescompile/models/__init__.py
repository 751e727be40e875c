"""Networks and their weights: what exists (registry), how it is built (resnet, cifar), where weights come from."""
