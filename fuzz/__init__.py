"""Coverage-guided fuzzing of all that reads bytes from outside; see README.md here. No part of the package `kcs`."""
