"""A package outside of the repository: something of one's own for every question that a run answers."""
