"""Prompts and real pictures: data sets as their authors lay them out, drawn the same on every machine."""
