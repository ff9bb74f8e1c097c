"""What `erless doctor` asks, a function per question."""
