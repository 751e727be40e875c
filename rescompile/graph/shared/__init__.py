"""What the stages share: names, reading and writing graphs, their structure, and what a graph records about itself."""
