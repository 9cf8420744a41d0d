"""A comparison as one HTML file that opens offline: verdicts, plots, tables, and what was run."""
