"""Data sets of users: what a folder holds, conversion to what can be trained on, and a first experiment file."""
