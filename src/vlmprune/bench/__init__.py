"""The benchmark: generated tasks, a runner that can be killed at any point, a result store, statistics."""
