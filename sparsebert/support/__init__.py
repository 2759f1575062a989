"""What the rest of the package stands on: argument checks, locks, progress."""
