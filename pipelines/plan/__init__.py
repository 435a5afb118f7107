"""segquant-plan: what the graph says of a model, without weights."""
