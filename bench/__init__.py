"""The benchmarks of kcs with their gates; README.md says how to run and read them."""
