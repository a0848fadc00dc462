"""Bytes on disk: the only package that knows how checkpoint files are laid out."""
