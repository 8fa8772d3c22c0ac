"""The loop, and the parts that a run is made of."""
