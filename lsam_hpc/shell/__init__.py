"""What the command line says of itself: completion for shells, and a manual page of each verb."""
