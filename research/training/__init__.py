"""Training: state, update, loop, schedules. It needs no run directory and no command line."""
