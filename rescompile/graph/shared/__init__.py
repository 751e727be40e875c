"""Code that the stages share: names, reading and writing graphs, their structure, and the metadata of a graph."""
