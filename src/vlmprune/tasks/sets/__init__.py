"""The tasks, one small file each: every `Task` in a module of this folder can be named in `--tasks`."""
