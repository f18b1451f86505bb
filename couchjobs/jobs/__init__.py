"""What a job is, and how its document moves."""
