"""The system around us: atomic files, the garbage collector, the project's root, the machine."""
