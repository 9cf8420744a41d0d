"""The files of a run and of a sweep: names, formats and locks."""
