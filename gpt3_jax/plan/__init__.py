"""What a configuration costs, read from the program itself before anyone pays for hardware."""
