"""What only a GPU can show, as one command: SDXL in its real size, checked and measured in minutes."""
