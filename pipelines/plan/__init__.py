"""segquant-plan: what the graph says of a model, before any weight is read."""
