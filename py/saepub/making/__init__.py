"""What make is told at each call: settings as variables, and which of them have changed."""
