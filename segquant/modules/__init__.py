"""Helpers about nn.Module: which layers, how they are called, replaced, and what they hold."""
