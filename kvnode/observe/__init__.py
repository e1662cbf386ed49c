"""What the process tells its operator: events (`log`) and numbers (`metrics`). Imports nothing but row 0."""
