"""Which images there are, and the label of each."""
