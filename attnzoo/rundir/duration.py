"""Formats durations."""


def format_duration(seconds: float) -> str:
    """3:05 for 185 seconds, 1:00:00 for an hour."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
