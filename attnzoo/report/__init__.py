"""Results read from run folders alone; imports no torch."""
