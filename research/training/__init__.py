"""The loop: state, step, update, schedules. Knows nothing of files or of the command line."""
