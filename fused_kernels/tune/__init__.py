"""The tuner finds, for every problem of a network, the fastest tile that gives the right result on this GPU."""
