"""Training runs: teachers, the student, the loop and its step."""
