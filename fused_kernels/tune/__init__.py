"""The tuner: for every problem of a network, the fastest of the tiles that give the right answer on this GPU."""
