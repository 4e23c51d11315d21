"""What stands behind the scripts in tools/."""
