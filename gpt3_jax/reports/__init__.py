"""Tables of the papers, of published measurements, and of how plans scale, each beside what this code computes."""
