"""The networks that judge: torch models, loaded only when pictures are judged."""
