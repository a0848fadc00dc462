"""Families of models as data: what each tool calls their modules, and how rows lie there."""
