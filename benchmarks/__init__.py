"""Speed and memory, measured beside a yardstick of the same run, and stored with the command that made them."""
