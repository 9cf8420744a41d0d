"""Running an experiment file: its variants, their folders, the processes that train them."""
