"""Prompts, real pictures and control pictures."""
