"""The machine around us: files replaced atomically, the garbage collector, the project's folders, the CPU."""
