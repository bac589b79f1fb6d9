"""What a run needs from the machine, and scripts that are run as they are."""
