"""What engines for CPUs share: the forms of INT8 graphs, and the rewriting of a graph into one."""
