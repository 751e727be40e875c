"""The deployable graph lowered to fused steps.

graph          an ONNX graph as the lowering reads it: producers, readers, constants, Q/DQ pairs
preprocessing  the nodes between the graph's input and the first convolution
fusion         a convolution with the nodes that its step takes in
shortcut       the shortcut without parameters: slices and pads
network        all steps and weights of a network
chains         bottlenecks whose convolutions run in one launch
"""
