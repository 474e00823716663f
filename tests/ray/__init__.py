"""Ray as it is: a local one, with four logical CPUs."""
