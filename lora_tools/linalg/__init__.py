"""Pure functions of tensors: no files, no options, no state."""
