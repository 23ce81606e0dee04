"""What a configuration needs and costs, read from its compiled program without the hardware: see README.md here."""
