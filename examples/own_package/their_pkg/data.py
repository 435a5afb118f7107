"""A data set: a list of (prompt, picture or None, split)."""

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "ring", "cross")


def prompts(kind: str) -> list[tuple[str, None, str]]:
    """Every colour with every shape; those of one colour are for evaluation."""
    return [
        (f"a {colour} {kind} {shape}", None, "evaluation" if colour == COLOURS[0] else "calibration")
        for colour in COLOURS
        for shape in SHAPES
    ]
