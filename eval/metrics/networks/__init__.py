"""The networks that judge, loaded only when pictures are judged."""
