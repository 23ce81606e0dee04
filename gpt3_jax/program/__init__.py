"""What a compiled program says of itself: instructions, memory, arithmetic, traffic, schedule."""
