"""What people see of a run: scores, plots, the report, the terminal."""
