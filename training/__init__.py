"""The program that makes the embedded models from nothing; see README.md."""
