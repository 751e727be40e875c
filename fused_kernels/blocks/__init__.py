"""Residual blocks and stems composed of ``ops``, and the differentiable ``torch.library`` operators made of them."""
