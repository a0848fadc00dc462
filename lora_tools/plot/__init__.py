"""Pictures of inspections; `figure` draws them."""

FORMATS = (".png", ".svg", ".pdf")
