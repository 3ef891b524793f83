"""What a machine has: files, devices, threads, installed packages."""
