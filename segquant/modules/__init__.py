"""Helpers about nn.Module."""
