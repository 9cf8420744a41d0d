"""The interactive page: what every query of every attention looks at, in one HTML file."""
