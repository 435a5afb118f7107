"""The judgement: folders of pictures in, metrics with intervals out."""
