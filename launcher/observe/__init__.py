"""What people see of a job: the live view, log lines, the report, and events as a file."""
