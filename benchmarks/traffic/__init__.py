"""Bytes that a ResNet moves between memory and chip: fused, eager, compiled by Inductor, and the least that must move.

    shapes      a network as shapes alone
    footprint   bytes of one launch of a fused kernel, from its own arguments
    ours        the fused operators, run on meta tensors
    torch_ops   bytes of PyTorch's operations, from theirs
    eager       torchvision's forward pass and its autograd, run on meta tensors
    compiled    torch.compile, by a model of Inductor's passes: formulas in its docstring
    floors      fusedA (training) and pool (inference): formulas in its docstring
    tables      all of them, block by block;  pages, command: the same for readers

The command is ``python -m benchmarks.traffic``; what it says is in docs/traffic.md.
"""
